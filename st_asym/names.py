"""What st_asym calls its own files in the folder of a model or a run; loading a model ignores them."""

REPORT_FILE = "st_asym_report.json"
PROVENANCE_FILE = "st_asym.json"
EVALUATION_FOLDER = "evaluation"
