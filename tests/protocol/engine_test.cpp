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
      processes.keep_spares();
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
  const auto deadline = steady::now() + within * slowness;
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
      CHECK(elapsed_since(start) < 1500ms * slowness);
    }
    CHECK(program.gone(2s));
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
      CHECK(elapsed_since(left) < 500ms * slowness);
    }
    CHECK(program.gone(1s));
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
  const auto deadline = steady::now() + 10s * slowness;
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
