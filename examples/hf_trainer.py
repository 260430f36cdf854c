"""Distillation in Hugging Face's Trainer: a subclass to copy, and a run of it on two tiny language models.

    pip install transformers accelerate
    python examples/hf_trainer.py

The models are built from their configuration and learn to continue arithmetic progressions of tokens.
"""

import argparse
import tempfile

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import kdkernels as kd


class DistillationTrainer(Trainer):
    """Trainer whose loss is alpha T^2 D(teacher, student) + (1 - alpha) CE(labels, student), the mean over tokens.

    ``teacher`` is a causal language model over the student's vocabulary, ``loss`` any loss of kdkernels. A token whose
    label is -100 counts in neither term. Everything else is Trainer's.
    """

    def __init__(self, *args, teacher, loss=kd.ForwardKL(), alpha=0.5, temperature=1.0, **kwargs):  # noqa: B008
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        # inplace=True gives the gradient the memory of the logits, where the model's backward does not need them.
        self.criterion = kd.DistillationLoss(loss, alpha=alpha, temperature=temperature)
        self.model_accepts_loss_kwargs = True  # or Trainer would not count the tokens of an accumulated batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        # Logits foretell the next token. Shifted labels leave them whole; a slice of them would be copied in backward.
        labels = F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
        outputs = model(**inputs)  # without labels, or the model computes a loss of its own
        with torch.no_grad():
            teacher = self.teacher(**inputs).logits
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            num_items_in_batch = num_items_in_batch / self.accelerator.num_processes  # gradients are averaged over them
        loss = self.criterion(outputs.logits, teacher, labels, normalizer=num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def language_model(hidden, vocab=128):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            use_cache=False,
        )
    )


def progressions(count, length=32, vocab=128):
    """Sequences start, start + step, start + 2 step, ... modulo the vocabulary; a prompt of 2 to 15 is not counted."""
    start, step = torch.randint(vocab, (count, 1)), torch.randint(1, 9, (count, 1))
    tokens = (start + step * torch.arange(length)) % vocab
    prompt = torch.arange(length) < torch.randint(2, length // 2, (count, 1))
    labels = tokens.masked_fill(prompt, -100)
    return [{"input_ids": ids, "labels": of} for ids, of in zip(tokens, labels, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of the teacher and of the student")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # models this small lose time to a second thread
    set_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        distil(options, folder)


def distil(options, folder):
    data = {"train_dataset": progressions(2048), "eval_dataset": progressions(256)}
    common = {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "seed": options.seed,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    teacher, student = language_model(hidden=128), language_model(hidden=32)
    Trainer(teacher, TrainingArguments(learning_rate=3e-3, **common), **data).train()

    arguments = TrainingArguments(learning_rate=1e-2, **common)
    trainer = DistillationTrainer(
        student, arguments, teacher=teacher, loss=kd.ForwardKL(), alpha=0.9, temperature=2.0, **data
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"distillation loss on held-out sequences: {before:.3f} before training, {after:.3f} after")


if __name__ == "__main__":
    main()
