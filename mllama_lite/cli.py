"""The command line: ask, info, download, train, measure, finetune. Not exported."""

import argparse
import os
import sys


CARDS = (16, 24, 48, 80)  # GiB of memory of common GPUs


def main(arguments=None):
    """Run one command; returns the exit code, 2 if the input cannot be used."""
    options = _parser().parse_args(arguments)
    from mllama_lite.errors import InputError

    try:
        options.run(options)
        sys.stdout.flush()
    except InputError as error:
        print(f"mllama-lite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="mllama-lite", description="Ask Llama 3.2 Vision about pictures."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    ask = commands.add_parser("ask", help="ask about one image, several, or none")
    ask.add_argument("images", nargs="*", metavar="IMAGE", help="image files, in order")
    ask.add_argument("question", help="the last word is the question")
    _add_model(ask)
    ask.add_argument(
        "--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one"
    )
    ask.add_argument("--dtype", help="bfloat16, float16, float32; default: as stored")
    ask.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    ask.add_argument(
        "--temperature", type=float, default=0.0, help="0 (the default) is greedy"
    )
    ask.add_argument("--top-k", type=int, default=0)
    ask.add_argument("--top-p", type=float, default=1.0)
    ask.add_argument("--min-p", type=float, default=0.0)
    ask.add_argument("--seed", type=int)
    ask.add_argument(
        "--show",
        metavar="FILE",
        help="also save a picture of where each token of the (greedy) answer looked",
    )
    ask.add_argument(
        "--adapter", metavar="FOLDER", help="answer with the adapter that finetune made"
    )
    ask.set_defaults(run=_ask)
    info = commands.add_parser(
        "info", help="what a model is and needs, without loading it"
    )
    info.add_argument(
        "model", nargs="?", help="hub id or folder; default: the small shipped one"
    )
    info.add_argument(
        "--dtype", help="compute memory for this dtype; default: as stored"
    )
    info.set_defaults(run=_info)
    download = commands.add_parser("download", help="fetch a model from the hub")
    download.add_argument("model", help="hub id: organisation/name")
    download.set_defaults(run=_download)
    train = commands.add_parser(
        "train",
        help="train the small shipped model anew, or go on where it was stopped",
    )
    train.add_argument("--out", required=True, metavar="FOLDER")
    for name, meaning in (
        ("seed", "of all random numbers"),
        ("vision-steps", "steps of the first stage"),
        ("joint-steps", "steps of the second stage"),
        ("decay-steps", "how many of them lower the learning rate"),
    ):
        train.add_argument(f"--{name}", type=int, metavar="N", help=meaning)
    train.add_argument(
        "--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one"
    )
    train.set_defaults(run=_train)
    measure = commands.add_parser(
        "measure", help="answer held-out questions and print how many were right"
    )
    _add_model(measure)
    measure.add_argument(
        "--split", default="test", help="validation or test (the default)"
    )
    measure.add_argument(
        "--questions", type=int, default=500, metavar="N", help="in each row"
    )
    measure.add_argument(
        "--out", metavar="FILE", help="also write the counts to a JSON file"
    )
    measure.set_defaults(run=_measure)
    finetune = commands.add_parser(
        "finetune",
        help="train an adapter on a folder of images and questions, or go on with it",
    )
    finetune.add_argument(
        "data", metavar="DATA", help="folder with images and metadata.jsonl"
    )
    finetune.add_argument("--out", required=True, metavar="FOLDER")
    _add_model(finetune)
    finetune.add_argument(
        "--targets",
        metavar="A,B,...",
        help="what is adapted: all, self, mlp, cross, vision.local, vision.global, "
        "projector, head, or patterns of module names, each with a rank of its own after "
        "a colon if it has one, as head:64; default: self,mlp,cross",
    )
    for name, kind, meaning in RECIPE:
        finetune.add_argument(f"--{name}", type=kind, metavar="N", help=meaning)
    for name, meaning in (
        ("checkpointing", "compute layers twice, for a fraction of the memory"),
        ("skip-bad", "go on without lines that are no samples"),
        ("resume", "insist that there is a training to go on with"),
    ):
        finetune.add_argument(f"--{name}", action="store_true", help=meaning)
    finetune.add_argument(
        "--save-every", type=int, default=50, metavar="N", help="steps (50)"
    )
    finetune.add_argument(
        "--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one"
    )
    finetune.add_argument(
        "--dtype", help="bfloat16 or float32; default: bfloat16 on a GPU that has it"
    )
    finetune.set_defaults(run=_finetune)
    return parser


RECIPE = (  # options of finetune that are settings of its Recipe
    ("rank", int, "of the adapter (8)"),
    ("alpha", float, "the adapter is multiplied by alpha / rank (16)"),
    ("dropout", float, "share of an adapter's inputs that is left out (0)"),
    ("epochs", int, "how often every sample is seen (3)"),
    ("steps", int, "steps of the optimiser, instead of epochs"),
    ("lr", float, "highest learning rate (2e-4)"),
    ("batch", int, "samples at once, which memory limits (4)"),
    ("accumulate", int, "how many batches make a step (1)"),
    ("held-out", float, "share of the samples that is measured, not learned (0.1)"),
    ("max-length", int, "tokens that a sample may have; default: the model's context"),
    ("seed", int, "of all random numbers (0)"),
)


def _add_model(parser):
    parser.add_argument(
        "--model",
        help="hub id or folder, either layout; default: the small shipped one",
    )


def _ask(options):
    from mllama_lite.generation import Sampling
    from mllama_lite.tiles import open_image
    from mllama_lite.vlm import load

    names = ("temperature", "top_k", "top_p", "min_p", "seed")
    settings = {name: getattr(options, name) for name in names}
    # A wrong setting or file is said before gigabytes are loaded.
    Sampling(**settings)
    if options.show:
        _check_show(options)
    images = [open_image(image) for image in options.images]
    if options.adapter:
        _check_adapter(options.adapter)
    vlm = load(options.model, options.device, options.dtype, _progress())
    if options.adapter:
        from mllama_lite.adapters.peft_files import load_adapter

        # Not merged: small changes get lost in weights of 16 bits.
        load_adapter(vlm.model, options.adapter)
    settings["max_new_tokens"] = options.max_new_tokens
    for piece in vlm.stream(options.question, images, **settings):
        print(piece, end="", flush=True)
    print()
    if options.show:
        from mllama_lite.attention_maps import draw_looks, look

        looks = look(vlm, images, options.question, options.max_new_tokens)
        draw_looks(looks, vlm.config.vision).save(options.show)


def _check_show(options):
    """Before anything is loaded: whether the picture of --show can be made and saved."""
    from pathlib import Path

    from PIL import Image

    from mllama_lite.errors import InputError

    path = Path(options.show)
    if not options.images:
        raise InputError(
            f"--show {path} has no image to show: expected at least one; name one before "
            "the question."
        )
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(
            f"--show {path} ends in {path.suffix!r}: expected an image file such as "
            "attention.png; rename it."
        )
    if not path.parent.is_dir():
        raise InputError(
            f"--show {path} is in a folder that does not exist: expected an existing "
            "one; make it first."
        )


def _check_adapter(folder):
    """Before anything is loaded: whether the folder of --adapter holds one."""
    from mllama_lite.errors import InputError

    if not os.path.isfile(os.path.join(folder, "adapter_config.json")):
        raise InputError(
            f"--adapter {folder} has no adapter_config.json: expected the folder that "
            "finetune wrote to; check the path."
        )


def _info(options):
    from pathlib import Path

    import torch

    from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
    from mllama_lite.checkpoints.loading import open_checkpoint, read_config
    from mllama_lite.cost import memory_needs
    from mllama_lite.devices import find_dtype

    dtype = find_dtype(options.dtype)
    if options.model is None or Path(options.model).is_dir():
        folder = find_folder(options.model)
        checkpoint = open_checkpoint(folder)
        config, report = checkpoint.config, checkpoint.report
        dtype = dtype or report.dtype
        print(f"{folder}\n{report}")
        for names, problem in (
            (report.missing, "missing"),
            (report.unexpected, "unexpected"),
        ):
            for name in names[:5]:
                print(f"  {problem}: {name}")
        print(
            f"tokenizer: {'yes' if find_tokenizer(folder) else 'none in this folder'}"
        )
    else:  # of a model on the hub its configuration is enough, and small
        config = read_config(find_folder(options.model, ["config.json"]))
        dtype = dtype or torch.bfloat16
        size = memory_needs(config, dtype, 0, 0)["weights"]
        count = size // dtype.itemsize
        print(f"{options.model}\n{count:,} parameters, {size / 2**30:.2f} GiB")
    text, vision = config.text, config.vision
    cross = len(text.cross_attention_layers)
    print(
        f"text: {len(text.self_attention_layers)} self-attention and {cross} cross-attention "
        f"layers, width {text.hidden_size}, {text.num_attention_heads} query and "
        f"{text.num_key_value_heads} key heads, {text.vocab_size} tokens"
    )
    if vision:
        print(
            f"vision: {vision.num_hidden_layers} local and {vision.num_global_layers} global "
            f"layers, width {vision.hidden_size}, tiles of {vision.image_size} pixels, "
            f"{vision.num_patches} tokens each"
        )
    images = 1 if vision else 0
    longest = text.max_position_embeddings
    for tokens in [n for n in (2048, 8192) if n <= longest] or [longest]:
        needs = memory_needs(config, dtype, tokens, images)
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in needs.items())
        total = sum(needs.values()) / 2**30
        fits = [f"{card} GiB" for card in CARDS if total < 0.95 * card]
        print(
            f"memory in {str(dtype).removeprefix('torch.')} with {tokens} tokens and {images} "
            f"image: {total:.2f} GiB ({parts}); fits on a card of: {', '.join(fits) or 'none'}"
        )


def _download(options):
    from mllama_lite.checkpoints.hub import download

    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    print(download(options.model))


def _train(options):
    _keep_freed_memory()
    from mllama_lite.devices import find_device
    from mllama_lite.small_model.training import Plan, train

    names = ("seed", "vision_steps", "joint_steps", "decay_steps")
    given = {name: getattr(options, name) for name in names}
    plan = Plan(**{name: value for name, value in given.items() if value is not None})
    device = find_device(options.device)
    train(options.out, plan, _training_progress(), device=device)
    print(options.out)


def _finetune(options):
    _keep_freed_memory()
    from functools import partial

    from mllama_lite.adapters.training import Recipe, finetune

    names = [name.replace("-", "_") for name, _, _ in RECIPE]
    given = {name: getattr(options, name) for name in names}
    if options.targets is not None:
        given["targets"] = tuple(options.targets.split(","))
    recipe = Recipe(**{name: v for name, v in given.items() if v is not None})
    finetune(
        options.model,
        options.data,
        options.out,
        recipe,
        device=options.device,
        dtype=options.dtype,
        checkpointing=options.checkpointing,
        skip_bad=options.skip_bad,
        save_every=options.save_every,
        resume=options.resume,
        progress=_training_progress("loss", (1, 50)),
        report=partial(print, file=sys.stderr),
    )
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        print(options.out)


def _keep_freed_memory():
    """Let the C library keep large blocks for the next step of training.

    glibc gives them back to the system and asks for them anew, which took a sixth of
    the time of a step on a CPU. Elsewhere there is nothing to set.
    """
    import ctypes

    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    set_option(-3, 2**30)  # M_MMAP_THRESHOLD, bytes
    set_option(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def _training_progress(name="answers", every=(10, 500)):
    """A line on standard error that is written anew every so many steps.

    Args:
        name: of the loss in the trainer's history.
        every: steps, on a terminal and off it.
    """
    import time

    begin, first, terminal = time.monotonic(), [], sys.stderr.isatty()

    def show(trainer):
        first[:] = first or [trainer.step - 1]
        done, total = trainer.step, getattr(trainer, "plan", trainer).steps
        if done % every[not terminal] and done != total:
            return
        each = (time.monotonic() - begin) / (done - first[0])
        left = round(each * (total - done))
        last = trainer.history[-1] if trainer.history else {}
        loss = f", {name} {last[name]:.3f}" if last.get(name) else ""
        bar = "#" * (30 * done // total)
        text = f"training [{bar:<30}] {done} of {total}{loss}"
        text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        start = "\r" if terminal else ""
        end = "" if terminal and done != total else "\n"
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    return show


def _measure(options):
    from mllama_lite.checkpoints.hub import find_folder
    from mllama_lite.small_model.evaluation import (
        answers,
        best_guesses,
        exact_match,
        held_out,
        table,
    )
    from mllama_lite.vlm import load

    vlm = load(options.model, progress=_progress())
    items = held_out(options.split, options.questions)
    counts = {"right": exact_match(items, answers(vlm, items))}
    for images in ("wrong", "blank", "none"):
        counts[images] = exact_match(items, answers(vlm, items, images))
    sample = held_out("train", 2 * options.questions, seed=1)
    counts["guess"] = exact_match(items, best_guesses(items, sample))
    unseen = held_out(options.split, options.questions, unseen_wording=True)
    counts["unseen"] = exact_match(unseen, answers(vlm, unseen))
    print(table(counts))
    if options.out:
        import hashlib
        import json
        from pathlib import Path

        weights = hashlib.sha256()
        for path in sorted(find_folder(options.model).glob("*.safetensors")):
            weights.update(path.read_bytes())
        document = {"split": options.split, "weights_sha256": weights.hexdigest()}
        # A row a line: columns of [right, total].
        rows = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(column)}"
            for name, column in counts.items()
        )
        text = json.dumps(document)[:-1] + f', "counts": {{\n{rows}\n}}}}\n'
        Path(options.out).write_text(text)


def _progress():
    """A progress bar on standard error that leaves nothing behind; None off a terminal."""
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        return None

    def show(done, total):
        bar = "#" * (30 * done // total)
        end = "\r\033[K" if done == total else ""
        text = f"\rloading [{bar:<30}] {done / 2**30:.2f} of {total / 2**30:.2f} GiB"
        print(text, end=end, file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
