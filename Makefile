# claude-openai: `make run` is all that a user needs, `make test` all that a contributor needs.
#
# GNU make 4.3 or newer. CXX, CPPFLAGS, CXXFLAGS, LDFLAGS, LDLIBS, PREFIX and DESTDIR are honoured. V=1
# shows whole commands. HTTPLIB_INCLUDE=dir takes a header-only httplib.h from there.

PREFIX ?= /usr/local
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
Q      := $(if $(V),,@)

# A configuration is a set of flags with a folder of its own: plain in build/, NAME in build/NAME/.
CONFIG ?= plain
B      := build$(if $(filter-out plain,$(CONFIG)),/$(CONFIG))

# Compiles in two thirds of the time of -O2; the proxy's own work, a few milliseconds a request, takes a seventh more.
flags_plain := -O1
flags_asan  := -O1 -g -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS \
               -fsanitize=address,undefined -fno-sanitize-recover=all
flags_tsan  := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
flags_fuzz  := -O1 -g -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS -DDOCTEST_CONFIG_DISABLE \
               -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all

ifeq ($(origin CXX),default)
CXX := g++
endif
# Compiles sanitized code twice as fast.
SANITIZE_CXX ?= clang++
export CXX CPPFLAGS CXXFLAGS HTTPLIB_INCLUDE

# Expanded when a recipe runs, so after what pkg-config tells about has been installed. Debian's
# cpp-httplib is a split build: without the flags of its .pc file its classes change size.
pkg_config = $(foreach p,cpp-httplib nlohmann_json CLI11,$(shell pkg-config $1 $p 2>/dev/null))
cflags     = $(if $(HTTPLIB_INCLUDE),-isystem "$(HTTPLIB_INCLUDE)",$(call pkg_config,--cflags)) $(call sqlite,--cflags) $(call redis,--cflags)
# Without libsqlite3 the program is built without --store.
sqlite     = $(if $(shell pkg-config --libs sqlite3 2>/dev/null),$(shell pkg-config $1 sqlite3) $(if $(filter --cflags,$1),-DCLAUDE_OPENAI_SQLITE))
# Without libhiredis it is built without --store redis://, without its part for TLS (1.0 or newer has one) without rediss://.
redis      = $(if $(shell pkg-config --libs hiredis 2>/dev/null),$(shell pkg-config $1 $(redis_tls) hiredis) $(if $(filter --cflags,$1),-DCLAUDE_OPENAI_REDIS))
redis_tls  = $(shell pkg-config --exists hiredis_ssl 2>/dev/null && echo hiredis_ssl)
tls        = $(if $(findstring OPENSSL_SUPPORT,$(cflags) $(CPPFLAGS) $(CXXFLAGS)),-lssl -lcrypto)
libs       = $(if $(HTTPLIB_INCLUDE),,$(call pkg_config,--libs)) $(tls) $(call sqlite,--libs) $(call redis,--libs) $(LDLIBS)
compile    = $(CXX) -std=c++17 $(flags_$(CONFIG)) -Wall -Wextra -Wpedantic -Wconversion -Wshadow \
             -pthread -I. $(cflags) $(CPPFLAGS) $(CXXFLAGS)
link       = $(CXX) $(flags_$(CONFIG)) -pthread $(CXXFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(libs)

all: build/claude-openai ## build the proxy (this is the default)

# ---- running -------------------------------------------------------------------------------------

# The CLI that `make run` installs when there is none on PATH; its lock file has a checksum of every package.
cli_lock   := packaging/cli/package.json packaging/cli/package-lock.json
cli_folder := build/cli/$(shell sed -n 's|.*/claude-code": "\(.*\)".*|\1|p' packaging/cli/package.json)
cli        := $(cli_folder)/node_modules/@anthropic-ai/claude-code/bin/claude.exe

# Not empty when the user has a CLI: on PATH, in the environment or among the flags. The demo and a look at the settings need none.
own_cli := $(CLAUDE_CLI_PATH)$(filter --claude-path% --demo --security,$(ARGS))$(shell command -v claude 2>/dev/null)

# Compiled, unless build/dist has one of this very commit.
proxy := $(or $(if $(filter run doctor,$(MAKECMDGOALS)),$(shell .ci/packed)),build/claude-openai)

run: $(proxy) $(if $(own_cli),,$(cli_folder)/installed) ## build and start, flags in ARGS="--port 9000"
	@.ci/deps sandbox
	@exec env $(if $(own_cli),,CLAUDE_CLI_PATH="$(abspath $(cli))") $(proxy) $(ARGS)

doctor: $(proxy) $(if $(own_cli),,$(cli_folder)/installed) ## is everything there that answers need?
	@$(if $(own_cli),,CLAUDE_CLI_PATH="$(abspath $(cli))") $(proxy) doctor $(ARGS)

login: $(if $(own_cli),,$(cli_folder)/installed) ## log the `claude` in that `make run` uses
	@"$(if $(CLAUDE_CLI_PATH),$(CLAUDE_CLI_PATH),$(if $(own_cli),claude,$(cli)))" auth login

dev: build/claude-openai $(if $(own_cli),,$(cli_folder)/installed) ## build and start, and again whenever a source changes
	@$(if $(own_cli),,CLAUDE_CLI_PATH="$(abspath $(cli))") tests/dev $(ARGS)

# A newer npm may skip the package's install script, which puts the program in place of a stub.
$(cli_folder)/installed: $(cli_lock)
	@.ci/deps node
	@mkdir -p $(@D) && cp $(cli_lock) $(@D)
	npm ci --prefix $(@D) --no-audit --no-fund --loglevel=error
	@$(cli) --version >/dev/null 2>&1 || node $(cli_folder)/node_modules/@anthropic-ai/claude-code/install.cjs
	@$(cli) --version && touch $@

# ---- building ------------------------------------------------------------------------------------

object    = $(patsubst %.cpp,$B/obj/%.o,$1)
stand_in := tests/protocol/stand_in.cpp
unit     := $(call object,$(wildcard tests/unit/*.cpp))
golden   := $(call object,$(wildcard tests/golden/*.cpp))
protocol := $(call object,$(filter-out $(stand_in),$(wildcard tests/protocol/*.cpp)))
# A suite that has no sources yet has no program.
programs := $(foreach suite,unit golden protocol,$(if $($(suite)),$B/tests/$(suite)))

build/claude-openai: $(call object,main.cpp) build/obj/commit.o
$B/tests/unit: $(unit)
$B/tests/golden: $(golden)
$B/tests/protocol: $(protocol)
build/tests/stand-in: $(call object,$(stand_in))
$B/tests/fuzz: $(call object,tests/fuzz/fuzz.cpp)
$(programs): $(call object,tests/main.cpp)

build/claude-openai build/tests/stand-in $B/tests/fuzz $(programs):
	@echo "link $@"
	@mkdir -p $(@D)
	$Q$(link)

# The big headers of the tests are compiled once for a configuration.
pch := $B/tests/pch.hpp
$(pch).gch: tests/pch.hpp $B/flags | need-test
	@echo "c++  $<"
	@mkdir -p $(@D)
	$Q$(compile) -MMD -MP -MF $@.d -x c++-header -o $@ $<

$(unit) $(golden) $(protocol): $(pch).gch | need-test
$(unit) $(golden) $(protocol): private use_pch = -include $(pch)
# Tests are compiled far longer than they run.
$(unit) $(golden) $(protocol) $(pch).gch: private flags_plain = -O0
$(call object,tests/main.cpp): | need-test

$B/obj/%.o: %.cpp $B/flags | need-build
	@echo "c++  $<$(if $(filter main.cpp,$<), (takes about a minute))"
	@mkdir -p $(@D)
	$Q$(compile) $(use_pch) -MMD -MP -c -o $@ $<

# What `--version` says of the commit, outside main.o: a new commit compiles this one line. Sources that lie in another
# project's repository have no commit.
commit := extern const char claude_openai_commit[] = "$(or $(shell test -e .git && \
            git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null),unknown)";

build/obj/commit.o: build/obj/commit.cpp build/flags
	$Q$(compile) -c -o $@ $<

build/obj/commit.cpp:
	@mkdir -p $(@D)
	@echo '$(commit)' > $@
ifneq ($(shell cat build/obj/commit.cpp 2>/dev/null),$(commit))
build/obj/commit.cpp: FORCE
endif

-include $(shell find $B/obj $B/tests -name '*.d' 2>/dev/null)

# Changes when the compiler or its flags do, and then everything is built again.
$B/flags: | need-build
	@mkdir -p $(@D)
	@echo '$(strip $(compile))' > $@
ifneq ($(shell cat $B/flags 2>/dev/null),$(strip $(compile)))
$B/flags: FORCE
endif

# ---- testing -------------------------------------------------------------------------------------

test: ## build and run every test; the last line counts them
	@.ci/deps build test node browser sandbox clients replicas portable
	@$(MAKE) --no-print-directory -j$(JOBS) programs redis-tls e2e-modules client-libraries
	@tests/run unit golden protocol build e2e portable

unit protocol golden: ## build and run one suite
	@.ci/deps build test
	@$(MAKE) --no-print-directory -j$(JOBS) programs
	@tests/run $@

e2e: build/claude-openai redis-tls stand-in e2e-modules client-libraries ## run the real server, the real CLI and real clients
	@.ci/deps browser sandbox replicas
	@tests/run e2e

e2e-clients: build/claude-openai stand-in e2e-modules client-libraries ## run coding agents and clients of npm, Python, Go, Rust and Java
	@.ci/deps browser
	@cd tests/e2e && node run.mjs --suite coding_agents,npm,npm_agents,python,languages,open_webui

header: stand-in ## check the header itself (linkage, macros, warnings, sections, shape)
	@.ci/deps build test node
	@tests/run build

# The stand-in for the CLI is not under test, so it is never the sanitized one.
asan tsan: ## run unit, golden and protocol tests under address+undefined or thread sanitizer
	@.ci/deps build test sanitize
	@$(MAKE) --no-print-directory -j$(JOBS) stand-in
	@$(MAKE) --no-print-directory -j$(JOBS) CONFIG=$@ CXX=$(SANITIZE_CXX) programs
	@CONFIG=$@ tests/run unit golden protocol

# Seconds for each target of tests/fuzz/targets.hpp, or of those in FUZZ="decoder guard". What is found stays in
# build/fuzz; the corpus grows there too, and comes into tests/fuzz/corpus by `make fuzz-merge`.
FUZZ_TIME ?= 60
FUZZ      ?= chat messages responses completions decoder writers http_head guard
fuzz_limits := -max_len=8192 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1

fuzz: ## look for inputs that break parsers, decoder, writers and guard; FUZZ_TIME=600
	@.ci/deps build test sanitize
	@$(MAKE) --no-print-directory CONFIG=fuzz CXX=$(SANITIZE_CXX) build/fuzz/tests/fuzz
	@for target in $(FUZZ); do \
	  mkdir -p build/fuzz/corpus/$$target build/fuzz/findings && echo "fuzz $$target" && \
	  FUZZ_TARGET=$$target build/fuzz/tests/fuzz $(fuzz_limits) -max_total_time=$(FUZZ_TIME) \
	    -artifact_prefix=build/fuzz/findings/$$target- build/fuzz/corpus/$$target \
	    tests/fuzz/corpus/$$target > build/fuzz/$$target.log 2>&1 || \
	    { tail -n 40 build/fuzz/$$target.log; exit 1; }; \
	  tail -n 5 build/fuzz/$$target.log | grep executed; \
	done

fuzz-merge: ## keep in tests/fuzz/corpus what `make fuzz` has found that covers more
	@for target in $(FUZZ); do \
	  FUZZ_TARGET=$$target build/fuzz/tests/fuzz $(fuzz_limits) -merge=1 \
	    tests/fuzz/corpus/$$target build/fuzz/corpus/$$target 2>&1 | tail -n 1; \
	done

bench: build/claude-openai stand-in e2e-modules ## measure what requests, sessions and streams cost
	@node tests/bench/bench.mjs

# All that is tested with the newest of the pinned CLIs is tested with this one. E2E_ARGS="--suite plan,web" takes a part.
CLI ?= latest
compat: programs e2e-modules ## run all suites with another Claude Code, and add its line to a table: CLI=2.1.340
	@tests/compat $(CLI)

portable: e2e-modules ## build for macOS and for Linux without glibc, and play the demo with the static program
	@.ci/deps build node portable
	@.ci/portable

dist: ## build what a release has, into build/dist: static programs for Linux as .tar.gz, .deb and npm package, with sums
	@.ci/deps build portable dist
	@.ci/release programs
	@.ci/release packages

version: ## write the version of claude-openai.hpp into the files that must name it themselves
	@.ci/release version

test-packages: ## try what `make dist` has built: unpacked, installed by npm, and in clean Debian 12 and 13
	@.ci/deps node debootstrap
	@tests/run packages

# SOAK_SEED=n repeats a load, SOAK_CLI=stand-in, claude or demo takes one of them alone.
soak: build/claude-openai stand-in e2e-modules ## run 50 conversations at once, end a plan 100 times, kill a proxy with a store 200 times, then a mixed load with faults for SOAK_TIME=300 s
	@SOAK=1 node tests/e2e/run.mjs --only 'never mix|the plan ends at any moment|kills under load'
	@SOAK_TIME=$(or $(SOAK_TIME),300) node tests/soak/soak.mjs

programs: $(programs) $(if $(filter plain,$(CONFIG)),build/claude-openai stand-in) ; @:
stand-in: $(if $(wildcard $(stand_in)),build/tests/stand-in) ; @:

# The program for tests of `--store rediss://` where the system's hiredis has no TLS.
redis-tls: $(if $(redis_tls),,build/tests/redis-tls) ; @:
build/tests/redis-tls: build/tests/redis-tls.o build/obj/commit.o
	@[ ! -e $< ] || $(CXX) -pthread $(CXXFLAGS) $(LDFLAGS) -o $@ $^ build/hiredis/libhiredis.a $(filter-out -lhiredis,$(libs))
build/tests/redis-tls.o: private flags_plain = -O0
build/tests/redis-tls.o: main.cpp claude-openai.hpp .ci/hiredis .ci/sources build/flags | need-build
	@mkdir -p $(@D)
	@if .ci/hiredis; then \
	  echo "c++  $< with TLS to Redis (takes about a minute)"; \
	  $(subst -I. ,-Werror -isystem build/hiredis/include -I. ,$(compile)) -c -o $@ $<; \
	else \
	  rm -f $@ build/tests/redis-tls; \
	  echo "No hiredis with TLS can be had here. Tests that need it are SKIPPED." >&2; \
	fi

e2e-modules: $(if $(wildcard tests/e2e/package-lock.json),tests/e2e/node_modules/.package-lock.json) ; @:
# Not `npm ci`: it wants packages of other platforms in the lock file that a registry may not have.
tests/e2e/node_modules/.package-lock.json: tests/e2e/package-lock.json
	@.ci/deps node
	cd tests/e2e && npm install --no-save --no-audit --no-fund --loglevel=error
	@touch $@

# Client libraries of other languages, and the programs that use them: each lock file's in a folder of its own. What
# cannot be installed here, or not in CLIENT_TIMEOUT seconds, is no error: the tests that need it are skipped, and counted so.
# The long command is run by `exec`, so that `timeout` ends it and not only its shell.
CLIENT_TIMEOUT ?= 1800
# 4 GB. `make test LARGE_CLIENTS=` does without, and skips and counts their tests.
LARGE_CLIENTS  ?= npm_large open_webui
python_clients := $(patsubst tests/e2e/python/%.txt,%,$(wildcard tests/e2e/python/*.txt))
client-libraries: $(foreach client,$(filter-out open_webui,$(python_clients)) npm go rust java $(LARGE_CLIENTS),build/clients/$(client)/installed) ; @:
install_client = rm -f $@ && mkdir -p $(@D) && { timeout --foreground $(CLIENT_TIMEOUT) sh -ec '$1' && touch $@; } || \
                 echo "Not installed: $(@D). Tests that need it are SKIPPED." >&2

$(python_clients:%=build/clients/%/installed): build/clients/%/installed: tests/e2e/python/%.txt | need-clients
	$(call install_client,python3 -m venv --clear $(@D); exec $(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<)

build/clients/npm/installed build/clients/npm_large/installed: build/clients/%/installed: tests/e2e/%/package-lock.json $(wildcard tests/e2e/npm/*.mjs) | need-clients
	$(call install_client,cp tests/e2e/npm/*.mjs tests/e2e/$*/package*.json tests/e2e/$*/.npmrc $(@D); cd $(@D); exec npm install --no-save --loglevel=error)

build/clients/go/installed: $(wildcard tests/e2e/go/go.* tests/e2e/go/*/*.go) | need-clients
	$(call install_client,cd tests/e2e/go; exec go build -o "$(abspath $(@D))/" ./...)

build/clients/rust/installed: $(wildcard tests/e2e/rust/*) | need-clients
	$(call install_client,exec cargo build --locked --quiet --manifest-path tests/e2e/rust/Cargo.toml --target-dir $(@D))

build/clients/java/installed: $(wildcard tests/e2e/java/*) | need-clients
	$(call install_client,exec mvn --quiet --batch-mode -f tests/e2e/java/pom.xml -DbuildDirectory="$(abspath $(@D))" \
	  compiler:compile dependency:copy-dependencies)

# ---- keeping -------------------------------------------------------------------------------------

sources = $(wildcard claude-openai.hpp main.cpp tests/*.?pp tests/*/*.?pp)

format: ## lay out the sources by .clang-format
	@.ci/deps format
	clang-format -i $(sources)

format-check: ## say which sources `make format` would change
	@.ci/deps format
	clang-format --dry-run --Werror $(sources)

tidy: ## look for bugs by .clang-tidy
	@.ci/deps build tidy
	clang-tidy --quiet main.cpp -- -std=c++17 -I. $(cflags) $(CPPFLAGS)

# A path may hold blanks: each is quoted where it is used.
prefix         = $(DESTDIR)$(PREFIX)
systemd_folder = $(prefix)/share/systemd/user
system_folder  = $(prefix)/lib/systemd/system
launchd_folder = $(prefix)/share/claude-openai
# What the program tells of its flags: WHAT in its folder below share.
generated      = bash:bash-completion/completions/claude-openai zsh:zsh/site-functions/_claude-openai \
                 fish:fish/vendor_completions.d/claude-openai.fish man:man/man1/claude-openai.1

install: build/claude-openai ## install program, header, manual, shell completion and service files below PREFIX
	install -d "$(prefix)/bin" "$(prefix)/include" "$(systemd_folder)" "$(system_folder)" "$(launchd_folder)"
	install -m 755 build/claude-openai "$(prefix)/bin/"
	install -m 644 claude-openai.hpp "$(prefix)/include/"
	install -d "$(prefix)/share/cmake/claude_openai" "$(prefix)/share/pkgconfig"
	install -m 644 packaging/cmake/*.cmake "$(prefix)/share/cmake/claude_openai/"
	install -m 644 packaging/claude-openai.pc "$(prefix)/share/pkgconfig/"
	sed 's|@PREFIX@|$(PREFIX)|g' packaging/claude-openai.service > "$(systemd_folder)/claude-openai.service"
	sed 's|@PREFIX@|$(PREFIX)|g' packaging/claude-openai-system.service > "$(system_folder)/claude-openai.service"
	sed 's|@PREFIX@|$(PREFIX)|g' packaging/claude-openai.plist > "$(launchd_folder)/claude-openai.plist"
	for one in $(generated); do \
	  install -d "$(prefix)/share/$$(dirname "$${one#*:}")" && \
	  build/claude-openai generate "$${one%%:*}" > "$(prefix)/share/$${one#*:}" || exit 1; \
	done
	@echo "A service needs claude on its PATH (npm install -g @anthropic-ai/claude-code), or CLAUDE_CLI_PATH among its settings."

uninstall: ## remove what `make install` installed
	rm -f "$(prefix)/bin/claude-openai" "$(prefix)/include/claude-openai.hpp" \
	  "$(systemd_folder)/claude-openai.service" "$(system_folder)/claude-openai.service" \
	  "$(launchd_folder)/claude-openai.plist" "$(prefix)/share/pkgconfig/claude-openai.pc"
	rm -rf "$(prefix)/share/cmake/claude_openai"
	for one in $(generated); do rm -f "$(prefix)/share/$${one#*:}"; done
	-rmdir "$(launchd_folder)"

clean: ## remove everything that was built, and the CLI in build/cli
	rm -rf build

deps: ## install what building and testing need
	@.ci/deps build test sanitize node

need-build:
	@.ci/deps build
need-test: need-build
	@.ci/deps build test
need-clients:
	@.ci/deps clients node

help: ## say this
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z][a-z0-9 -]*\):[^#]*## /\1:/p' $(firstword $(MAKEFILE_LIST)) | \
	  awk -F: '{ printf "  %-24s%s\n", $$1, $$2 }'

FORCE:
.DELETE_ON_ERROR:
.PHONY: all run doctor login dev compat dist test-packages version test fuzz fuzz-merge unit protocol golden e2e e2e-clients header asan tsan bench soak portable programs \
        stand-in redis-tls e2e-modules client-libraries format format-check tidy install uninstall clean deps need-build need-test \
        need-clients help FORCE
