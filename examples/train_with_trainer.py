"""Heads trained on texts with the stock trainer, arguments and loss, for those who bring their own loop.

    python examples/train_with_trainer.py [a BEIR folder or zip, or a .jsonl, .csv or .tsv of query and document]

The encoder runs for every text in every epoch here; quickstart.py runs it once.
"""

import sys

from packaged_encoder import packaged_encoder
from python_docs import python_docs
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from st_asym import IsotropyLoss, asymmetric_model, column_prompts, router_mapping, watch
from st_asym.data import load_data

data = (load_data(sys.argv[1]) if len(sys.argv) > 1 else python_docs(pairs=400)).with_dev_split()
train, dev = data.pairs("train"), data.pairs("dev")
model = asymmetric_model(packaged_encoder())
arguments = SentenceTransformerTrainingArguments(
    output_dir="runs/train_with_trainer",
    num_train_epochs=2,
    per_device_train_batch_size=64,
    learning_rate=3e-4,
    batch_sampler="no_duplicates",
    router_mapping=router_mapping(train),
    prompts=column_prompts(model, router_mapping(train)) or None,
    eval_strategy="epoch",
    logging_steps=1,
    report_to="none",
)
trainer = SentenceTransformerTrainer(
    model=model, args=arguments, train_dataset=train, eval_dataset=dev, loss=IsotropyLoss(model, weight=0.3)
)
watch(trainer)
trainer.train()
model.save_pretrained("runs/train_with_trainer/model")
