"""The command line: mllama-lite ask, info, download. Written by hand, not exported."""

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
    ask.add_argument("--model", required=True, help="hub id or folder, either layout")
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
    ask.set_defaults(run=_ask)
    info = commands.add_parser(
        "info", help="what a model is and needs, without loading it"
    )
    info.add_argument("model", help="hub id or folder, either layout")
    info.add_argument(
        "--dtype", help="compute memory for this dtype; default: as stored"
    )
    info.set_defaults(run=_info)
    download = commands.add_parser("download", help="fetch a model from the hub")
    download.add_argument("model", help="hub id: organisation/name")
    download.set_defaults(run=_download)
    return parser


def _ask(options):
    from mllama_lite.generation import Sampling
    from mllama_lite.inference import load
    from mllama_lite.tiles import open_image

    names = ("temperature", "top_k", "top_p", "min_p", "seed")
    settings = {name: getattr(options, name) for name in names}
    # A wrong setting or file is said before gigabytes are loaded.
    Sampling(**settings)
    images = [open_image(image) for image in options.images]
    vlm = load(options.model, options.device, options.dtype, _progress())
    settings["max_new_tokens"] = options.max_new_tokens
    for piece in vlm.stream(images, options.question, **settings):
        print(piece, end="", flush=True)
    print()


def _info(options):
    from pathlib import Path

    import torch

    from mllama_lite.checkpoint import open_checkpoint, read_config
    from mllama_lite.inference import (
        find_dtype,
        find_folder,
        find_tokenizer,
        memory_needs,
    )

    dtype = find_dtype(options.dtype)
    if Path(options.model).is_dir():
        folder = Path(options.model)
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
    for tokens in (2048, 8192):
        needs = memory_needs(config, dtype, tokens, images)
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in needs.items())
        total = sum(needs.values()) / 2**30
        fits = [f"{card} GiB" for card in CARDS if total < 0.95 * card]
        print(
            f"memory in {str(dtype).removeprefix('torch.')} with {tokens} tokens and {images} "
            f"image: {total:.2f} GiB ({parts}); fits on a card of: {', '.join(fits) or 'none'}"
        )


def _download(options):
    from mllama_lite.checkpoint import download

    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    print(download(options.model))


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
