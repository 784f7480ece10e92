"""The files of a saved model, read as if a stranger had packed them: nothing is run, unpickled, followed or trusted.

From the bottom up: ``findings`` (what is wrong), ``folder`` (plain files and JSON), ``files`` (which there may be),
``tensors`` (weights), ``modules`` (what they make up).
"""
