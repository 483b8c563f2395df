"""Break the model's core in every small way, and see whether the tests notice.

    python tools/mutations.py              run every mutant that has no result yet
    python tools/mutations.py rope model   those of these modules
    python tools/mutations.py --each 5     five of each function, drawn by lot
    python tools/mutations.py --survivors  run those again that survived
    python tools/mutations.py --page       write tests/mutants.md, run nothing

A mutant is the package with one expression or statement changed. It is killed if a test fails,
or if it takes more processor time or memory than any test needs. One that survives shows that a
test is missing, or is equivalent: then tests/mutants.md says why. The page keeps the reasons that
it has, and the run fails while a survivor has none.

Results are kept in _build/mutants.jsonl, so that an interrupted run goes on where it was; after a
change of the tests remove that file, or run the survivors again.

mutmut and cosmic-ray start a process for each mutant, which imports torch, transformers and
Meta's code anew. Here all that is imported once, and every mutant runs in a fork of it.
"""

import argparse
import ast
import importlib
import json
import os
import random
import re
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "_build" / "mutants.jsonl"
PAGE = ROOT / "tests" / "mutants.md"
SECONDS = 90  # of processor time; the tests below take less than 15
MEMORY = 24 * 2**30  # of addresses
SEEDS = range(3)  # of random configurations, where the tests themselves take 12 or 28

# What a mutant imports that is not the package itself.
SHARED = """torch numpy PIL.Image PIL.ImageOps safetensors.torch tiktoken matplotlib.cbook
sklearn.datasets torch.distributed.fsdp torch.distributed.tensor.parallel torch._dynamo
fairscale.nn.model_parallel.initialize llama_models.llama3.generation
llama_models.llama3.multimodal.model llama_models.llama3.multimodal.image_transform
transformers.models.llama.modeling_llama transformers.models.mllama.modeling_mllama
transformers.models.mllama.image_processing_pil_mllama""".split()

# The tests of each module, those first that are quick and kill most.
TESTS = {
    "rope": """parts::layouts_are_a_permutation_apart parts::rope_rotation
        parts::frequencies_do_not_hang_on_the_programs_dtype
        parts::rope_turns_bf16_in_fp32_and_rounds_once parts::settings_cannot_be_changed
        parts::self_attention parts::rope_of_the_hub parts::rope_frequencies""",
    "attention": """parts::grouped_attention parts::cache_refuses_what_does_not_fit
        parts::attention_by_hand_gives_weights_in_fp32
        parts::reserve_keeps_what_is_stored_and_where
        parts::heads_need_not_fill_the_width parts::no_token_sees_a_later_one
        parts::self_attention parts::grouped_attention_copies_no_keys
        seams::embeddings_instead_of_tokens seams::layers_of_another_kind
        seams::a_cache_takes_the_dtype_of_what_is_stored
        whole_model::everything_is_made_on_the_models_device
        inference::sessions_that_outgrow_their_cache
        whole_model::static_shapes whole_model::rows_of_a_mixed_batch""",
    "decoder": """parts::rms_norm parts::mlp_and_layer parts::embedding
        parts::settings_cannot_be_changed parts::a_configuration_that_fits_no_model_is_refused
        parts::logits_are_fp32_and_frequencies_kept parts::no_token_sees_a_later_one
        parts::default_sizes_are_the_hubs
        parts::a_new_model_shows_no_image_and_takes_every_eps_from_its_configuration
        parts::a_mask_that_is_given_is_used parts::a_tied_head_is_the_embedding
        whole_model::everything_is_made_on_the_models_device
        seams::embeddings_instead_of_tokens seams::layers_of_another_kind
        whole_model::prefill whole_model::static_shapes whole_model::rows_of_a_mixed_batch
        whole_model::cached_decode""",
    "local_vision": """parts::local_vision parts::settings_cannot_be_changed
        parts::tokens_of_a_tile_are_filled_up
        parts::default_sizes_are_the_hubs
        parts::a_new_model_shows_no_image_and_takes_every_eps_from_its_configuration
        parts::tables_count_for_nothing_where_a_tile_is_missing
        parts::vision_model parts::padding_is_seen
        whole_model::everything_is_made_on_the_models_device""",
    "global_vision": """parts::vision_model parts::padding_is_seen
        parts::images_of_a_batch_are_encoded_as_alone
        whole_model::everything_is_made_on_the_models_device
        parts::a_new_model_shows_no_image_and_takes_every_eps_from_its_configuration""",
    "cross_attention": """parts::masks_only_where_needed parts::cross_attention_layer
        parts::heads_need_not_fill_the_width
        parts::which_token_sees_which_image
        parts::a_new_model_shows_no_image_and_takes_every_eps_from_its_configuration
        whole_model::prefill whole_model::everything_is_made_on_the_models_device
        inference::generated_tokens_keep_seeing_the_images inference::images_are_encoded_once
        whole_model::rows_of_a_mixed_batch whole_model::cached_decode
        inference::conversation_reuses_its_caches""",
    "model": """whole_model::prefill parts::a_text_only_model_has_no_vision
        whole_model::everything_is_made_on_the_models_device
        whole_model::embeddings_stand_for_tokens_beside_images
        seams::the_model_asks_its_norm_what_it_is
        parts::settings_cannot_be_changed parts::default_sizes_are_the_hubs
        whole_model::static_shapes inference::images_are_encoded_once
        seams::every_matrix_can_be_quantised_the_head_too inference::bad_tokens
        inference::devices_and_dtypes""",
    "generation": """inference::sampling_cuts inference::ties_are_kept_or_cut_together
        inference::a_top_p_of_1_keeps_all inference::greedy_takes_the_first_of_equals
        inference::settings_at_their_limits inference::sampling_frequencies
        inference::samplers_without_a_seed_draw_each_their_own
        inference::logits_that_are_no_numbers_are_refused
        inference::generating_takes_memory_once_and_runs_no_step_in_vain
        inference::sessions_refuse_what_they_cannot_do
        whole_model::everything_is_made_on_the_models_device
        inference::rows_of_different_lengths_are_taken_further
        inference::sessions_that_outgrow_their_cache inference::rows_stop_on_their_own
        inference::generated_tokens_keep_seeing_the_images whole_model::static_shapes
        inference::images_are_encoded_once inference::batches_equal_single_rows parts::top_p
        inference::conversation_reuses_its_caches""",
    "tiles": """tiles::order_of_canvases tiles::thin_images tiles::odd_sizes
        tiles::at_most_as_many_tiles_as_are_asked_for
        tiles::tiles_of_any_mode_are_those_of_the_picture_in_rgb
        tiles::tiles_do_not_hang_on_the_programs_defaults
        tiles::pixels_of_the_hub tiles::sizes tiles::pixels_of_random_sizes""",
}
ONLY = {
    "tiles": {"canvases", "choose_canvas", "resized_size", "Tiles", "image_to_tiles"}
}
NAMES = [("min", "max"), ("any", "all"), ("cos", "sin"), ("floor", "ceil")]
NAMES += [("zeros", "ones"), ("new_zeros", "new_ones"), ("no_grad", "enable_grad")]
SIBLINGS = dict(NAMES) | {b: a for a, b in NAMES}
OPERATORS = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}


@dataclass(frozen=True)
class Mutant:
    """One changed line: in which module and function, what it was, what it is."""

    module: str
    where: str
    before: str
    after: str
    source: str  # of the whole module

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.module, self.where, self.before, self.after


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node: each a small mistake."""
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Compare(left, [operator], comparators):
            for other in OPERATORS[type(operator)]:
                yield ast.Compare(left, [other()], comparators)
        case ast.BinOp(left, operator, right):
            for other in OPERATORS.get(type(operator), []):
                yield ast.BinOp(left, other(), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(OPERATORS[type(operator)][0](), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.IfExp(_, body, otherwise):
            yield from (body, otherwise)
        case ast.Slice(lower, upper):
            yield from (ast.Slice(None, upper), ast.Slice(lower, None))
        case ast.Tuple([a, b], ast.Load()):
            yield ast.Tuple([b, a], ast.Load())
        case ast.If(_, body, otherwise) if not isinstance(body[0], ast.Raise):
            yield ast.If(ast.Constant(True), body, otherwise)
            yield ast.If(ast.Constant(False), body, otherwise)
        case ast.comprehension(target, iterated, [_, *_], is_async):
            yield ast.comprehension(target, iterated, [], is_async)
        case ast.Call() if "super()" not in ast.unparse(node):
            yield from calls(node)
        case ast.Expr(ast.Call(func)) if "super()" not in ast.unparse(func):
            yield ast.Pass()
        case ast.AugAssign() | ast.Raise():
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Assign([target], value):  # x = f(x)
            names = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
            if names & {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}:
                yield ast.Pass()


def calls(node: ast.Call) -> Iterator[ast.AST]:
    """A call of something else, with other arguments, or left out."""
    function, given, named = node.func, node.args, node.keywords
    if isinstance(function, ast.Name) and function.id in SIBLINGS:
        yield ast.Call(ast.Name(SIBLINGS[function.id]), given, named)
    if isinstance(function, ast.Name) and function.id == "reversed":
        yield given[0]
    if isinstance(function, ast.Attribute):
        if function.attr in SIBLINGS:
            other = ast.Attribute(function.value, SIBLINGS[function.attr])
            yield ast.Call(other, given, named)
        if not (isinstance(function.value, ast.Name) and function.value.id in LIBRARY):
            yield function.value  # x for x.method(...)
    name = getattr(function, "attr", getattr(function, "id", ""))
    for i in range(0 if name in SYMMETRIC else len(given) - 1):
        swapped = [*given[:i], given[i + 1], given[i], *given[i + 2 :]]
        yield ast.Call(function, swapped, named)
    if len(given) > 1:
        yield ast.Call(function, given[:-1], named)
    for i in range(len(named)):
        yield ast.Call(function, given, named[:i] + named[i + 1 :])


SYMMETRIC = {"min", "max", "transpose"}
LIBRARY = {"torch", "F", "nn", "np", "math", "Image", "self", "super"}


def places(node: ast.AST, where: str = "") -> Iterator[tuple]:
    """(container, key, name of the function) of every node that can be replaced."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        where = f"{where}.{node.name}".lstrip(".")
    for field, value in list(vars(node).items()):
        inside, keys = vars(node), [field]
        if isinstance(value, list):
            inside, keys = value, range(len(value))
        for key in keys:
            child = inside[key]
            if isinstance(child, ast.AST) and field not in ("annotation", "returns"):
                yield inside, key, where
                if not isinstance(child, (ast.JoinedStr, ast.Raise)):
                    yield from places(child, where)


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module that read differently."""
    tree = ast.parse((ROOT / "mllama_lite" / f"{module}.py").read_text("utf-8"))
    before = ast.unparse(tree).split("\n")
    found, seen, times = [], set(), Counter()
    for inside, key, where in places(tree):
        if module in ONLY and where.split(".")[0] not in ONLY[module]:
            continue
        node = inside[key]
        for new in replacements(node):
            inside[key] = new
            source = ast.unparse(tree)
            inside[key] = node
            lines = zip(before, source.split("\n"), strict=True)
            changed = [(a.strip(), b.strip()) for a, b in lines if a != b]
            if source in seen or not changed:
                continue
            seen.add(source)
            ((was, now),) = changed
            times[where, was, now] += 1
            count = times[where, was, now]
            name = where if count == 1 else f"{where} ({count})"
            found.append(Mutant(module, name, was, now, source))
    return found


class Mutated(SourceFileLoader):
    """Imports a module of the package from other text."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname):
        return compile(self.source, self.path, "exec")


class Finder:
    """Finds the mutated module before anything else does."""

    def __init__(self, mutant: Mutant):
        self.name = f"mllama_lite.{mutant.module}"
        path = str(ROOT / "mllama_lite" / f"{mutant.module}.py")
        self.loader = Mutated(self.name, path, mutant.source)

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            return spec_from_file_location(name, self.loader.path, loader=self.loader)


class Watch:
    """Ends the process at the first test that fails, or when all have passed."""

    def __init__(self, say):
        self.say = say

    def end(self, word: str) -> None:
        os.write(self.say, word.encode())
        os._exit(0)

    def pytest_collection_modifyitems(self, items):
        for item in items:
            if hasattr(item.module, "SEEDS"):
                item.module.SEEDS = SEEDS

    def pytest_collectreport(self, report):
        if report.failed:
            self.end(f"import of {report.nodeid}")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.end(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, exitstatus):
        self.end("" if exitstatus == 0 else "nothing ran")


def run(mutant: Mutant) -> str:
    """What killed a mutant; nothing if it survived."""
    hear, say = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1), os.dup2(silence, 2)
            sys.meta_path.insert(0, Finder(mutant))
            # --write-proof: figures are held against limits, not against the page.
            options = ["-p", "no:cacheprovider", "--capture=no", "--write-proof"]
            tests = (name.split("::") for name in TESTS[mutant.module].split())
            names = [f"tests/test_{file}.py::test_{test}" for file, test in tests]
            pytest.main([*options, *names], [Watch(say)])
        finally:
            os._exit(1)
    os.close(say)
    with open(hear) as pipe:
        word = pipe.read()
    _, status = os.waitpid(child, 0)
    return word if status == 0 else word or f"ended with status {status}"


def read_results() -> dict[tuple, str]:
    """What killed each mutant, by its key."""
    if not RESULTS.is_file():
        return {}
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    return {tuple(key): killer for key, killer in map(json.loads, lines)}


ENTRY = re.compile(
    r"^- (\w+), `(.*?)`: `(.*?)` becomes `(.*?)`\.\n  (.*)$", re.MULTILINE
)


def write_page(every: list[Mutant], results: dict[tuple, str]) -> int:
    """Write the page with the reasons that it has; the number of mutants without one."""
    known = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    reasons = {entry[:4]: entry[4] for entry in ENTRY.findall(known)}
    rows, entries, open_ones = [], [], 0
    for module in TESTS:
        ran = [m for m in every if m.module == module and m.key in results]
        survivors = [m for m in ran if not results[m.key]]
        number = len([m for m in every if m.module == module])
        killed = len(ran) - len(survivors)
        rows.append(
            f"| {module}.py | {number} | {len(ran)} | {killed} | {len(survivors)} |"
        )
        for mutant in survivors:
            reason = reasons.get(mutant.key, "NO REASON YET")
            open_ones += mutant.key not in reasons or reason == "NO REASON YET"
            name, where, before, after = mutant.key
            where = where or "module"
            entries.append(
                f"- {name}, `{where}`: `{before}` becomes `{after}`.\n  {reason}"
            )
    text = PAGE_TEXT.format(rows="\n".join(rows), entries="\n".join(entries))
    PAGE.write_text(text, encoding="utf-8")
    return open_ones


PAGE_TEXT = """# Mutants of the core

`make mutants` changes one expression or statement of the model's core at a time and runs the
tests that tools/mutations.py names for the module. It writes this page and keeps the reasons.
"Possible" are all mutants that the tool makes, "run" those that were tried.

| Module | Possible | Run | Killed | Equivalent |
|---|---|---|---|---|
{rows}

## Those that survive, and why each changes nothing that is promised

{entries}
"""


def by_turns(every: list[Mutant]) -> list[tuple[int, Mutant]]:
    """Drawn by lot, one of each function, then a second of each: (turn, mutant)."""
    drawn = random.Random(0).sample(every, len(every))
    count, turns = Counter(), []
    for mutant in drawn:
        function = mutant.module, mutant.where.split(" ")[0]
        turns.append((count[function], mutant))
        count[function] += 1
    return sorted(turns, key=lambda pair: pair[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="all, if none is named"
    )
    parser.add_argument(
        "--each", type=int, metavar="N", help="N of each function, no more"
    )
    parser.add_argument("--survivors", action="store_true", help="run survivors again")
    parser.add_argument(
        "--page", action="store_true", help="write the page, run nothing"
    )
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"no such module of the core: {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed
    every = [mutant for module in TESTS for mutant in mutants(module)]
    results = read_results()
    chosen = by_turns([m for m in every if m.module in (options.modules or TESTS)])
    if options.each:
        chosen = [mutant for turn, mutant in chosen if turn < options.each]
    else:
        chosen = [mutant for _, mutant in chosen]
    if options.survivors:
        chosen = [m for m in chosen if results.get(m.key) == ""]
    else:
        chosen = [m for m in chosen if m.key not in results]
    if chosen and not options.page:
        kept = prepare()  # noqa: F841
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        sound = set()
        for i, mutant in enumerate(() if options.page else chosen, 1):
            if mutant.module not in sound:  # without a mistake, all tests pass
                text = (ROOT / "mllama_lite" / f"{mutant.module}.py").read_text("utf-8")
                if failed := run(Mutant(mutant.module, "", "", "", text)):
                    sys.exit(f"{mutant.module}.py as it is: {failed}")
                sound.add(mutant.module)
            results[mutant.key] = killer = run(mutant)
            print(json.dumps([mutant.key, killer]), file=file, flush=True)
            if not killer:
                print(f"{i}/{len(chosen)} {mutant.module} {mutant.where}")
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    open_ones = write_page(every, results)
    print(f"{open_ones} mutants survive without a reason in {PAGE.relative_to(ROOT)}")
    return open_ones > 0


def prepare() -> list:
    """Import what every mutant needs, in one thread: a fork keeps only one.

    notebooks/reference.py makes Meta's code importable and brings the package along, which
    every mutant then imports for itself: so both are forgotten. What is returned has to be kept.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "notebooks"), str(ROOT / "tools")]
    importlib.import_module("torch").set_num_threads(1)
    for name in ["reference", *SHARED]:
        importlib.import_module(name)
    ours = [n for n in sys.modules if n.split(".")[0] in ("reference", "mllama_lite")]
    return [sys.modules.pop(name) for name in ours]


if __name__ == "__main__":
    sys.exit(main())
