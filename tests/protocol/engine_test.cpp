// One turn with a deadline and a client who may leave.
#include "proxy_support.hpp"

using namespace protocol_test;
using claude_openai::answer;
using claude_openai::child_guard;
using claude_openai::engine;
using claude_openai::error_kind;
using claude_openai::options;
using claude_openai::pool;
using claude_openai::turn_request;

namespace {

struct running_engine {
  explicit running_engine(options chosen)
      : settings(std::move(chosen)),
        processes(settings, std::make_shared<child_guard>()),
        sessions(settings),
        turns(settings, processes, sessions) {
    processes.start();
    if (settings.spares > 0) {
      processes.keep_spares(settings.default_model);
      REQUIRE(eventually([&] { return processes.counts().warm == settings.spares; }));
    }
  }
  options settings;
  pool processes;
  claude_openai::session_store sessions;
  engine turns;
};

/// A socket with two ends, in place of a client's connection.
struct client_socket {
  client_socket() { REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0); }
  client_socket(const client_socket&) = delete;
  client_socket& operator=(const client_socket&) = delete;
  ~client_socket() {
    ::close(ends[0]);
    leave();
  }
  int ours() const { return ends[0]; }
  void leave() {
    if (ends[1] >= 0) ::close(std::exchange(ends[1], -1));
  }
  int ends[2];
};

outcome finish(answer& under_way, milliseconds within = 30s) {
  outcome got;
  const auto deadline = steady::now() + within;
  while (!got.ended() && steady::now() < deadline) {
    answer::choice_event next;
    const auto pulled = under_way.next(next, deadline);
    if (pulled == answer::pulled::client_left)
      got.client_left = true;
    else if (pulled != answer::pulled::silence)
      got.add(next.what);
  }
  return got;
}

outcome run(running_engine& running, const turn_request& request) {
  const auto under_way = running.turns.start({request}, -1);
  return finish(*under_way);
}

}  // namespace

TEST_CASE("engine: without a model or system prompt the operator's and a neutral one are used") {
  const stand_in program;
  running_engine running(options_for(program));
  auto request = asking("echo");
  request.model.clear();
  request.system.clear();
  const auto got = run(running, request);
  REQUIRE(got.stopped);
  const auto echo = json::parse(got.text);
  const auto argv = echo["argv"].get<std::vector<std::string>>();
  CHECK(std::count(argv.begin(), argv.end(), "--model=claude-test") == 1);
  const auto prompt = echo["told"]["initialize"]["systemPrompt"].dump();
  CHECK(prompt.find("assistant") != std::string::npos);
  CHECK(prompt.find("Claude Code") == std::string::npos);
}

TEST_CASE("engine: a spare that died unnoticed is replaced by another process, once") {
  const stand_in program("crash_in_initialize\nuntil n=1\n");
  auto settings = options_for(program);
  settings.spares = 1;
  running_engine running(settings);
  const auto under_way = running.turns.start({asking("text say=alive")}, -1);
  const auto got = finish(*under_way);
  CHECK(got.stopped);
  CHECK(got.text == "alive");
}

TEST_CASE("engine: a claude that dies every time is an error, not a loop") {
  const stand_in program("crash_in_initialize\n");
  auto settings = options_for(program);
  settings.spares = 1;
  running_engine running(settings);
  check_failed(run(running, asking("text")), error_kind::bad_gateway, "claude ended");
  CHECK(program.started() <= 4);  // the spare, the second try, and spares of the background
}

TEST_CASE("engine: a process that was started for the request is not tried again") {
  const stand_in program("crash_in_initialize\n");
  running_engine running(options_for(program));
  check_failed(run(running, asking("text")), error_kind::bad_gateway, "claude ended");
  CHECK(program.started() == 1);
}

TEST_CASE("engine: what went wrong after the first delta is not tried again") {
  const stand_in program;
  auto settings = options_for(program);
  settings.spares = 1;
  running_engine running(settings);
  const auto got = run(running, asking("crash after=1"));
  check_failed(got, error_kind::bad_gateway, "claude ended");
  CHECK(got.text == "w0");
}

TEST_CASE("engine: a silent claude is timed out wherever it falls silent, and its process ends") {
  struct silence {
    std::string wish, configuration, text;
  };
  for (const auto& each : {
           silence{"hang", "", ""},
           silence{"hang after=2", "", "w0 w1"},
           silence{"hang at=stop", "", "w0 w1"},
           silence{"text", "never_warm\n", ""},
           silence{"text", "no_answer_to_initialize\nhang_in_replay\n", ""},
           silence{"text", "hang_in_replay\n", ""},
           silence{"text", "slow_start ms=60000\n", ""},
       }) {
    CAPTURE(each.wish);
    CAPTURE(each.configuration);
    const stand_in program(each.configuration);
    auto settings = options_for(program);
    settings.timeout = 400ms * slowness;
    running_engine running(settings);
    auto request = asking(each.wish);
    request.messages.insert(request.messages.begin(), {user_says("a"), assistant_says("b")});
    const auto start = steady::now();
    {
      const auto under_way = running.turns.start({request}, -1);
      const auto got = finish(*under_way);
      check_failed(got, error_kind::timed_out, "--timeout");
      CHECK(got.text == each.text);
      CHECK(elapsed_since(start) >= 400ms);
      CHECK(elapsed_since(start) < 1500ms * patience);
    }
    CHECK(program.gone());
  }
}

TEST_CASE("engine: a client that leaves is noticed within a second, whatever the process does") {
  struct stage {
    std::string wish, configuration;
  };
  for (const auto& each : {
           stage{"hang", ""},
           stage{"hang after=2", ""},
           stage{"text n=100000 delay_ms=1", ""},
           stage{"text", "never_warm\n"},
           stage{"text", "hang_in_replay\n"},
           stage{"hang", "ignore_sigterm\nignore_eof\n"},
       }) {
    CAPTURE(each.wish);
    CAPTURE(each.configuration);
    const stand_in program(each.configuration);
    running_engine running(options_for(program));
    client_socket client;
    auto request = asking(each.wish);
    request.messages.insert(request.messages.begin(), {user_says("a"), assistant_says("b")});
    steady::time_point left;
    {
      const auto under_way = running.turns.start({request}, client.ours());
      std::thread leaving([&] {
        CHECK(eventually([&] { return program.started() == 1; }));
        std::this_thread::sleep_for(100ms);
        left = steady::now();
        client.leave();
      });
      CHECK(finish(*under_way).client_left);
      leaving.join();
      CHECK(elapsed_since(left) < 500ms * patience);
      const bool asks = each.wish != "text";               // the others do not get so far
      CHECK((under_way->usage().charge_usd > 0) == asks);  // before that nothing costs anything
    }
    CHECK(program.gone());
  }
}

TEST_CASE("engine: a client that is there, even one that has sent more, is not taken for gone") {
  const stand_in program;
  running_engine running(options_for(program));
  const client_socket client;
  REQUIRE(::write(client.ends[1], "GET / HTTP/1.1\r\n", 16) == 16);
  const auto under_way = running.turns.start({asking("text n=5 delay_ms=20")}, client.ours());
  const auto got = finish(*under_way);
  CHECK(got.stopped);
  CHECK_FALSE(got.client_left);
}

TEST_CASE("engine: silence is told at the time that was asked for, and loses nothing") {
  const stand_in program;
  running_engine running(options_for(program));
  const auto under_way = running.turns.start({asking("text say=\"at last\" first_ms=300")}, -1);
  int silences = 0;
  outcome got;
  const auto deadline = steady::now() + 30s;
  while (!got.ended() && steady::now() < deadline) {
    answer::choice_event next;
    const auto pulled = under_way->next(next, steady::now() + 50ms);
    if (pulled == answer::pulled::silence)
      ++silences;
    else
      got.add(next.what);
  }
  CHECK(got.text == "at last");
  CHECK(silences >= 3);
  CHECK(silences <= 8);
}

TEST_CASE("engine: a turn that is dropped at any moment frees its process") {
  const stand_in program;
  running_engine running(options_for(program));
  const auto before = resources_now();
  for (int i = 0; i < 20; ++i) {
    const auto under_way = running.turns.start({asking("text n=50 delay_ms=1")}, -1);
    answer::choice_event next;
    for (int events = 0; events < i; ++events) {
      under_way->next(next, steady::now() + milliseconds(i % 3));
    }
  }
  CHECK(program.gone());
  CHECK(running.processes.counts().busy == 0);
  CHECK(eventually([&] { return resources_now().descriptors == before.descriptors; }));
}

TEST_CASE("engine: when claude vanished, a lost spare ends in an error that says so") {
  const stand_in program("crash_in_initialize\n");
  auto settings = options_for(program);
  settings.spares = 1;
  running_engine running(settings);
  std::filesystem::remove(program.path());
  std::optional<claude_openai::api_error> told_error;
  try {
    const auto got = run(running, asking("text"));
    told_error = got.error;
  } catch (const claude_openai::api_error& error) {
    told_error = error;
  }
  REQUIRE(told_error);
  CHECK(told_error->kind == error_kind::unavailable);
  CHECK(told_error->message.find("npm install") != std::string::npos);
}

// ---- processes that are kept --------------------------------------------------------------------

namespace {

/// Processes stay when their answer has ended.
options living(const stand_in& program) {
  auto settings = options_for(program);
  settings.idle_timeout = 60s;
  return settings;
}

/// One answer that went well: what the process that gave it knows, and how it came about.
struct echoed {
  json known;
  claude_openai::turn_facts facts;
};

echoed echo(running_engine& running, turn_request request = asking("echo")) {
  const auto under_way = running.turns.start({std::move(request)}, -1);
  const auto got = finish(*under_way);
  REQUIRE_MESSAGE(got.stopped, (got.error ? got.error->message : "no end"));
  return {json::parse(got.text), under_way->facts()};
}

/// Nothing of an answer is left: its process may serve another.
bool all_idle(const pool& processes) {
  return eventually([&] {
    const auto counts = processes.counts();
    return counts.busy == 0 && counts.rewinding == 0 && counts.stopping == 0;
  });
}

}  // namespace

TEST_CASE("engine: a process that will not go back is replaced, unseen by the client") {
  for (const std::string how :
       {"refuses_rewind", "crash_in_rewind", "talks_in_rewind", "no_answer_to_rewind"}) {
    CAPTURE(how);
    const stand_in program(how + "\nuntil n=1\n");
    running_engine running(living(program));
    const auto first = echo(running);
    const auto second = echo(running);
    CHECK(second.known["pid"] != first.known["pid"]);
    CHECK(second.known["history"].size() == 1);
    CHECK(second.facts.origin == claude_openai::process_origin::started);
    CHECK(second.facts.rewound == 0);
    CHECK(program.started() == 2);
    const auto pid = first.known["pid"].get<pid_t>();
    CHECK(eventually([&] { return process_state(pid) == '\0'; }));
  }
}

TEST_CASE("engine: a failed answer is taken back, and its process serves the next") {
  for (const std::string wish :
       {"api_error status=500", "api_error status=529 after=2", "error_result",
        "error_result after=1", "retry_midstream how=different", "not_logged_in"}) {
    CAPTURE(wish);
    const stand_in program;
    running_engine running(living(program));
    const auto before = echo(running);
    auto request = asking(wish);
    request.stream = true;
    CHECK(run(running, request).error);
    REQUIRE(all_idle(running.processes));
    CHECK(running.processes.counts().idle == 1);
    const auto after = echo(running);
    CHECK(after.known["pid"] == before.known["pid"]);
    CHECK(after.known["history"].size() == 1);
    CHECK(program.started() == 1);
  }
}

TEST_CASE("engine: what was told of a conversation stays, when only its last answer failed") {
  const stand_in program;
  running_engine running(living(program));
  auto chat = asking("text say=one");
  REQUIRE(run(running, chat).stopped);
  chat.messages.insert(chat.messages.end(), {assistant_says("one"), user_says(told("hang"))});
  {
    const auto under_way = running.turns.start({chat}, -1);
    answer::choice_event next;
    under_way->next(next, steady::now() + 50ms);
  }
  REQUIRE(all_idle(running.processes));
  chat.messages.back() = user_says(told("echo"));
  const auto after = echo(running, chat);
  CHECK(after.facts.origin == claude_openai::process_origin::continued);
  CHECK(after.facts.replayed == 0);
  CHECK(after.known["history"].size() == 3);
  CHECK(program.started() == 1);
}

TEST_CASE("engine: an answer that nobody wants any more is taken back, and its process stays") {
  const auto asking_with_tool = [](const std::string& wish) {
    auto request = asking(wish);
    request.tools.push_back({"a", "looks", json::object({{"type", "object"}})});
    return request;
  };
  for (const std::string wish :
       {"hang", "hang after=2", "hang at=stop", "text n=100000 delay_ms=1", "tool names=a"}) {
    for (const std::string how : {"left", "cancelled", "timeout"}) {
      CAPTURE(wish);
      CAPTURE(how);
      const stand_in program;
      auto settings = living(program);
      running_engine running(settings);
      const auto before = echo(running, asking_with_tool("echo"));
      running.settings.timeout = how == "timeout" ? 200ms : 20s * slowness;
      const auto cancelled = std::make_shared<claude_openai::wake_signal>();
      client_socket client;
      {
        const auto under_way =
            running.turns.start({asking_with_tool(wish)}, client.ours(), cancelled);
        answer::choice_event next;
        if (wish != "hang") under_way->next(next, steady::now() + 5s);
        if (how == "left") client.leave();
        if (how == "cancelled") cancelled->raise();
        if (wish.rfind("tool", 0) != 0) {
          const auto got = finish(*under_way);
          CHECK(got.client_left == (how == "left"));
          CHECK(got.error.has_value() == (how != "left"));
        }
      }
      REQUIRE(all_idle(running.processes));
      const auto after = echo(running, asking_with_tool("echo"));
      CHECK(after.known["pid"] == before.known["pid"]);
      CHECK(after.known["history"].size() == 1);
      CHECK(program.started() == 1);
    }
  }
}

TEST_CASE("engine: a process that never stops what nobody wants any more is ended") {
  for (const std::string how : {"hang_in_replay", "no_answer_to_rewind"}) {
    CAPTURE(how);
    const stand_in program(how + "\n");
    running_engine running(living(program));
    auto request = asking("hang");
    request.messages.insert(request.messages.begin(), {user_says("a"), assistant_says("b")});
    {
      const auto under_way = running.turns.start({request}, -1);
      REQUIRE(eventually([&] {
        answer::choice_event next;
        under_way->next(next, steady::now() + 20ms);
        return running.processes.counts().busy == 1;
      }));
    }
    CHECK(program.gone());
    CHECK(running.processes.counts().idle == 0);
  }
}

TEST_CASE("engine: what an older claude does not take back is learnt once, for all processes") {
  struct version {
    std::string configuration;
    bool regenerates;
  };
  for (const auto& each :
       {version{"no_rewind_to_start\n", true}, version{"unsupported_rewind\n", false}}) {
    CAPTURE(each.configuration);
    const stand_in program(each.configuration);
    auto settings = living(program);
    std::atomic<int> lines{0};
    settings.log = {claude_openai::log_level::info,
                    [&](claude_openai::log_level, const std::string&) { ++lines; }};
    running_engine running(settings);
    std::set<pid_t> pids;
    for (int i = 0; i < 4; ++i) {
      const auto got = echo(running);
      CHECK(got.known["history"].size() == 1);
      CHECK(got.facts.origin == claude_openai::process_origin::started);
      pids.insert(got.known["pid"].get<pid_t>());
    }
    CHECK(pids.size() == 4);
    CHECK(program.started() == 4);
    CHECK(lines == 1);
    auto chat = asking("text say=one");
    REQUIRE(run(running, chat).stopped);
    chat.messages.insert(chat.messages.end(), {assistant_says("one"), user_says(told("echo"))});
    const auto second = echo(running, chat);
    CHECK(second.facts.origin == claude_openai::process_origin::continued);
    const auto again = echo(running, chat);
    CHECK((again.known["pid"] == second.known["pid"]) == each.regenerates);
    CHECK(again.known["history"].size() == 3);
  }
}

TEST_CASE("engine: an answer tells how its process came to it, and what that took") {
  using origin = claude_openai::process_origin;
  const stand_in program;
  auto settings = living(program);
  settings.spares = 1;
  running_engine running(settings);
  const auto spare = echo(running).facts;
  CHECK(spare.origin == origin::spare);
  CHECK(spare.rewound == 0);
  auto chat = asking("text say=one");
  const auto under_way = running.turns.start({chat}, -1);
  REQUIRE(finish(*under_way).stopped);
  CHECK(under_way->facts().origin == origin::rewound);
  CHECK(under_way->facts().rewound == 1);
  chat.messages.insert(chat.messages.end(), {assistant_says("one"), user_says(told("echo"))});
  const auto on = echo(running, chat).facts;
  CHECK(on.origin == origin::continued);
  CHECK(on.rewound == 0);
  CHECK(on.replayed == 0);
  chat.messages.front() = user_says("another beginning");
  const auto changed = echo(running, chat).facts;
  CHECK(changed.origin == origin::rewound);
  CHECK(changed.rewound == 2);
  CHECK(changed.replayed == 2);
  chat.model = "claude-other";
  const auto started = echo(running, chat).facts;
  CHECK(started.origin == origin::started);
  CHECK(started.replayed == 2);
  CHECK(started.rewound == 0);
}
