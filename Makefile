# Every target works as the first command after a clone: each sets up what it needs.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

# Where torch alone comes from; empty: from where everything does. PyTorch's index of CPU
# builds brings 3 GB less on Linux: see README.
TORCH_INDEX ?=

# One thread for each worker, unless the environment says otherwise: two workers with a
# thread pool each only get in each other's way.
test proof: export OMP_NUM_THREADS ?= 1

.PHONY: help book pdf test notebooks export update check format bench costs proof model measure ablations \
  skills corpus text duel probes guard sounds hearing pictures alignment fuzz mutants clean
.DEFAULT_GOAL := help

help:
	@echo "make book       build the book into _build/html"
	@echo "make pdf        print the book into _build/llama-vision.pdf"
	@echo "make test       run all checks, the notebooks included"
	@echo "make notebooks  run every notebook from top to bottom and export the package"
	@echo "make export     write mllama_lite/ from the notebooks as they are"
	@echo "make update     carry edits of mllama_lite/ back into the notebooks"
	@echo "make check      lint, types, and whether mllama_lite/ and the notebooks agree"
	@echo "make format     put code into the form that make check wants"
	@echo "make bench      time mllama_lite beside the reference"
	@echo "make costs      memory of fine-tuning, counted and measured, and speed beside PEFT"
	@echo "make model      train the small shipped model anew, into trained/ (hours)"
	@echo "make measure    answer held-out questions with the shipped model"
	@echo "make ablations  train the variants of the table in chapter 11 (hours)"
	@echo "make skills     train the adapters of the table in chapter 14 (hours)"
	@echo "make corpus     fetch the texts of chapter 16 into corpus/ (33 MB)"
	@echo "make text       train the language models of chapter 16, into trained/text (hours)"
	@echo "make duel       train the variants that chapter 17 compares, into trained/duel (hours)"
	@echo "make probes     fetch the probes of chapter 19 into probes/ (unpleasant to read)"
	@echo "make guard      train the small guard of chapter 19 and measure it (minutes)"
	@echo "make sounds     fetch and make the sounds of chapter 18 into sounds/ (100 MB, then 0.8 GB)"
	@echo "make hearing    train and measure the models of chapter 18, into trained/hearing (hours)"
	@echo "make pictures   fetch the captioned pictures and the encoder of chapter 20 into pictures/ (480 MB)"
	@echo "make alignment  let the language model of chapter 16 read them, into trained/alignment (hours)"
	@echo "make fuzz       throw ten million damaged files at the readers (hours)"
	@echo "make mutants    break the model's core in small ways and see what the tests notice (half an hour)"
	@echo "make proof      write the page 'What is proven' from the tests"
	@echo "make clean      remove what was built (.venv stays)"

# Done once, and again when the pins change.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "Python 3.11 to 3.14 is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up .venv. On Linux, where torch comes with CUDA, this fetches 3.5 GB, and .venv"
	@echo "takes 7 GB. With the CPU build of torch it is 0.8 GB and 2.5 GB:"
	@echo "    make TORCH_INDEX=https://download.pytorch.org/whl/cpu ..."
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q --no-deps --index-url $(TORCH_INDEX) \
	  $(shell grep ^torch= requirements.txt))
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q -e . --no-deps
	@touch $@

.venv: $(STAMP)

# What pages are made of; tests/test_site.py has the same list.
PAGE := _build/html/index.html
SOURCES := $(shell find _config.yml _toc.yml book notebooks mllama_lite tools/live.py tools/bundle.py tools/pages.py \
  -type f -not -path '*/packed/*' -not -path '*/__pycache__/*' -not -path '*/.*')

# --all: pages that have not changed would keep their warnings to themselves. The listings of
# modules are written only where there are none, or older ones.
book: check
	$(MAKE) --no-print-directory -W _config.yml $(PAGE)
	@echo "The book is built. Open $(CURDIR)/$(PAGE)"

$(PAGE): $(STAMP) $(SOURCES)
	$(BIN)/python tools/live.py book/assets/live/packed
	rm -rf _build/html/_modules
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	$(BIN)/python tools/bundle.py _build/html/_static/notebooks.zip
	$(BIN)/python tools/pages.py _build/html || { rm -f $@; exit 1; }
	@touch $@

pdf: book
	$(BIN)/python tools/pdf.py _build/html _build/llama-vision.pdf

# Two runs, because the notebooks need a plugin of their own; --dist loadfile keeps the
# cells of one notebook in one kernel. Reordered, those with few cells would come last, and some of
# them take long.
test: $(STAMP) $(PAGE)
	$(BIN)/python -m pytest tests -q -n $(WORKERS)
	$(BIN)/python -m pytest -p tests.outputs notebooks -q -n $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder

notebooks: $(STAMP)
	$(BIN)/python tools/notebooks.py --run

export: $(STAMP)
	$(BIN)/python tools/notebooks.py --export

update: $(STAMP)
	$(BIN)/python tools/notebooks.py --update

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/notebooks.py --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/compare.py

costs: $(STAMP)
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/finetuning.py

# Interrupted, it goes on where it was when called again.
model: $(STAMP)
	$(BIN)/mllama-lite train --out trained/first
	$(BIN)/mllama-lite train --out trained/drawings --start trained/first --plan drawings
	$(BIN)/mllama-lite train --out trained/rows --start trained/drawings --plan rows
	$(BIN)/mllama-lite train --out trained/numbers --start trained/rows --plan numbers

measure: $(STAMP)
	$(BIN)/mllama-lite measure --out notebooks/measured/held_out.json

ablations: $(STAMP)
	$(BIN)/python benchmarks/ablations.py

skills: $(STAMP)
	$(BIN)/python benchmarks/skills.py tune
	$(BIN)/python benchmarks/skills.py train

corpus: $(STAMP)
	$(BIN)/python tools/corpus.py

text: $(STAMP)
	@test -d corpus || { echo "There is no corpus/: run make corpus first."; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/text.py

duel: $(STAMP)
	$(BIN)/python benchmarks/siglip.py
	$(BIN)/python benchmarks/duel.py
	$(BIN)/python benchmarks/duel.py --cost

probes: $(STAMP)
	$(BIN)/python tools/probes.py

guard: $(STAMP)
	@test -d probes || { echo "There is no probes/: run make probes first."; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/guard.py

sounds: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tools/sounds.py

hearing: export OMP_NUM_THREADS ?= 1
hearing: $(STAMP)
	@test -d sounds/spoken || { echo "There is no sounds/spoken/: run make sounds first."; exit 1; }
	$(BIN)/python benchmarks/hearing.py
	PYTHONPATH=notebooks $(BIN)/python benchmarks/hearing.py --measure

pictures: $(STAMP)
	$(BIN)/python tools/pictures.py

alignment: $(STAMP)
	@test -f pictures/captions.jsonl || { echo "There is no pictures/: run make pictures first."; exit 1; }
	@test -d trained/text || { echo "There is no trained/text: run make text first."; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/alignment.py

# Coverage-guided; hours for the ten million inputs that the page of proofs tells of.
fuzz: $(STAMP)
	$(BIN)/python -m pip install -q atheris
	$(BIN)/python tools/fuzz.py --record tests/fuzz.json

# Interrupted, it goes on where it was when called again.
mutants: export OMP_NUM_THREADS ?= 1
mutants: $(STAMP)
	$(BIN)/python tools/mutations.py

proof: $(STAMP)
	$(BIN)/python -m pytest tests -q --write-proof

clean:
	rm -rf _build build dist *.egg-info .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
