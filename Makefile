PYTHON ?= python

.PHONY: check native format lint types layers test coverage profiles fields laws cards played tapes families families-more families-stack tables calibration screenshots install faults schemas manual site page page-check image-tapes

check: lint types layers test

install:
	$(PYTHON) -m pip install -c constraints.txt -e '.[train,test]'

# Compile the allocator again after a change in qlora_planner/memory/allocator/native; `install` does so too.
native:
	$(PYTHON) hatch_build.py

format:
	ruff format qlora_planner tools tests benchmarks examples action hatch_build.py
	ruff check --fix qlora_planner tools tests benchmarks examples action hatch_build.py

lint:
	ruff format --check qlora_planner tools tests benchmarks examples action hatch_build.py
	ruff check qlora_planner tools tests benchmarks examples action hatch_build.py

types:
	mypy

layers:
	lint-imports

test:
	$(PYTHON) -m pytest

# Lines of the memory model, the planner and the speed model that their own tests run; fails below the floor of
# pyproject.toml. Not part of `check`: before Python 3.12 it slows them down.
coverage:
	$(PYTHON) -m pytest --cov tests/memory tests/planner tests/session

# Rebuild every model profile and the index from profiles/configs; about four minutes on two cores.
profiles:
	$(PYTHON) -m tools.profiles profiles

# Turn every field of the configs of each class and write down which of them shape it: a minute or two a class.
fields:
	$(PYTHON) -m tools.config_fields profiles --resume

# Solve what each tensor of a class is made of, and prove it at every catalogue model: half a minute a structure.
laws:
	$(PYTHON) -m tools.wrappers profiles
	$(PYTHON) -m tools.classes profiles
	$(PYTHON) -m tools.laws.make profiles --resume

# Play the usual runs of the catalogue's models again, after a change in their tapes or in the allocator: half an hour on
# one core.
played:
	$(PYTHON) -m tools.played profiles

# Write the index of the cards again after a change in profiles/gpus.
cards:
	$(PYTHON) -m tools.profiles profiles cards

# Trace the default recipe of every model where it is not current: some seconds a tape, three to six tapes a model.
tapes:
	$(PYTHON) -m tools.traces profiles single --resume
	$(PYTHON) -m tools.traces profiles batched --resume
	$(PYTHON) -m tools.traces profiles moments

# Trace the default recipe of one model with an image again, at many sizes of image at once: make image-tapes MODEL=Qwen/...
image-tapes:
	$(PYTHON) -m tools.images.make profiles default "single middle" $(MODEL)

# Trace every structure of the catalogue for the recipes that people use, half a minute a piece, popular ones first; stop
# it and call it again as you like. Pieces are kept in build/families; the second line makes what ships of them.
families:
	$(PYTHON) -m tools.families.make build/families
	$(PYTHON) -m tools.families.pack build/families/pieces.jsonl $(wildcard build/families-*/pieces.jsonl) profiles

# Add what is in build/families-more to the families that ship, for models or recipes that came later; nothing that ships
# is made again: python -m tools.families.make build/families-more --names ... --recipes ...
families-more:
	$(PYTHON) -m tools.families.append build/families-more/pieces.jsonl profiles

# Families for other libraries: STACK is the python of an environment with them. What the pieces above hold for there is
# proved, the rest made, in build/families-stack; call `make families` again afterwards.
families-stack:
	$(STACK) -m tools.families.stacks build/families/pieces.jsonl build/families-stack

# Write docs/faults.md again from the tests that hold it.
faults:
	$(PYTHON) -m tests.faults docs/faults.md

# Write what the README and the pages of docs show of the program again: tables, answers, figures.
tables:
	$(PYTHON) -m tools.readme .
	$(PYTHON) -m tools.several_cards docs/several-cards.md
	$(PYTHON) -m tools.classes profiles docs/classes.md

# Write the JSON schemas of every document again, from what the program prints; needs [train] and genson, two minutes.
schemas:
	$(PYTHON) -m tools.schemas

# Predict every measured run of profiles/measurements again and keep the residuals: some seconds a run. A cache of its
# own, so that nothing traced by an older tracer stands in.
calibration:
	XDG_CACHE_HOME=$$(mktemp -d) $(PYTHON) -m tools.calibration profiles h200

# Write the manual page again, from the options that the program declares.
manual:
	$(PYTHON) -m tools.manual

# The documentation as a site on http://127.0.0.1:8000; `mkdocs build --strict` writes it to build/site. Needs [docs].
site:
	$(PYTHON) -m mkdocs serve

# The planner as a static page, build/page, whose Python runs in the browser: Pyodide from the npm registry, the wheels
# from PyPI. `make page-check` tries it in headless Chromium by the keyboard alone (needs playwright and a Chromium).
PYODIDE = 314.0.7
page:
	mkdir -p build/pyodide build/wheels
	cd build && npm pack --silent pyodide@$(PYODIDE) && tar xzf pyodide-$(PYODIDE).tgz -C pyodide --strip-components 1
	$(PYTHON) -m pip download -q --no-deps -d build/wheels --only-binary :all: --platform pyemscripten_2026_0_wasm32 \
	  --platform any --implementation cp --python-version 314 --abi cp314 --abi none msgspec platformdirs
	$(PYTHON) -m tools.page build/page --pyodide build/pyodide --wheels build/wheels

page-check:
	$(PYTHON) -m tools.page_check build/page

# Take the pictures of the explorer again, those that move from the real app too.
screenshots:
	$(PYTHON) benchmarks/screenshots.py docs/screenshots
	$(PYTHON) benchmarks/moving_picture.py docs/screenshots
