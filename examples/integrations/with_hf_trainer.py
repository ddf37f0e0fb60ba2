"""Hugging Face Trainer: hand it the wrapped optimizer in optimizers=(opt, None).

    python examples/integrations/with_hf_trainer.py

Trains a tiny BERT, built from a configuration (no download), on made-up sentences. Prints the
sparsity after training; seconds on a CPU.
"""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from sparseopt import SparseOptimizer
from sparseopt.integrations import TrainerCallback


class Sentences(Dataset):
    """Random words; the label says whether the first is in the upper half of the vocabulary."""

    def __init__(self, number: int = 96) -> None:
        self.words = torch.randint(64, (number, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = self.words[index]
        return {"input_ids": words, "labels": (words[0] >= 32).long()}


def main(folder: str | None = None, resume: bool = False) -> Trainer:
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    arguments = TrainingArguments(
        output_dir=folder or tempfile.mkdtemp(),
        max_steps=12,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        save_steps=6,
        logging_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    # The only new line. One step per gradient_accumulation_steps batches, max_steps in all.
    opt = SparseOptimizer(
        opt, algo="rigl", sparsity=0.9, total_steps=arguments.max_steps, update_every=2, model=model
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Sentences(),
        optimizers=(opt, None),
        callbacks=[TrainerCallback()],  # adds sparsity, churn and exploration rate to the log
    )
    trainer.train(resume_from_checkpoint=resume or None)
    print(f"sparsity {opt.sparsity:.1%} after {opt.steps} steps and {opt.updates} updates")
    return trainer


if __name__ == "__main__":
    main()
