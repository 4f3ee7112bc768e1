// One process and its turn: whatever it says or does, there is one clear end.
#include "process_support.hpp"

using namespace protocol_test;
using claude_openai::child_guard;
using claude_openai::error_kind;
using claude_openai::turn_request;

namespace {

/// One turn of a fresh stand-in.
outcome run(const turn_request& request, const std::string& configuration = "") {
  driven_process process(configuration);
  return process.ask(request);
}

outcome run(const std::string& wish, const std::string& configuration = "") {
  return run(asking(wish), configuration);
}

}  // namespace

TEST_CASE("claude_process: it is ready when it has answered, and silent until it is asked") {
  driven_process process;
  CHECK(process->now() == state::starting);
  CHECK(process.reaches(state::ready));
  CHECK(process->alive());
  CHECK_FALSE(process->failed_before_first_event());
  CHECK_FALSE(process->pop());
  CHECK(process->cursor().held.identity.empty());
  CHECK(process->cursor().marks.empty());
}

TEST_CASE("claude_process: one that reads nothing is not ready, and not dead either") {
  driven_process process("never_warm\n");
  CHECK_FALSE(process.pump_until([&] { return process->now() != state::starting; },
                                 milliseconds(300 / slowness)));
}

TEST_CASE("claude_process: the process is told everything once, in order, with roles") {
  turn_request request = asking("echo");
  request.system = "Line one\nline \"two\" \xF0\x9F\x8C\x8D";
  const auto question = request.messages.back();
  request.messages = {user_says("first"), assistant_says("first answer"), user_says("second"),
                      assistant_says("second answer"), question};
  // Slow enough that a line sent too early is seen to wait.
  const auto got = run(request, "slow_replay ms=20\n");
  REQUIRE(got.stopped);
  const auto echo = json::parse(got.text);
  CHECK(echo["unacknowledged"] == 0);
  CHECK(echo["told"]["initialize"]["systemPrompt"] == json::array({request.system}));
  REQUIRE(echo["history"].size() == 5);
  std::string roles, words;
  for (const auto& said : echo["history"]) {
    roles += said["role"].get<std::string>().substr(0, 1);
    words += said["content"][0]["text"].get<std::string>() + "|";
  }
  CHECK(roles == "uauau");
  CHECK(words == "first|first answer|second|second answer|[[echo]]|");
}

TEST_CASE("claude_process: a history that begins with the assistant is told in order too") {
  turn_request request = asking("echo");
  request.messages.insert(request.messages.begin(), assistant_says("I began"));
  const auto got = run(request);
  REQUIRE(got.stopped);
  const auto echo = json::parse(got.text);
  REQUIRE(echo["history"].size() == 2);
  CHECK(echo["history"][0]["role"] == "assistant");
}

TEST_CASE("claude_process: the process is started without tools, settings or keys of clients") {
  const auto got = run("echo");
  REQUIRE(got.stopped);
  const auto echo = json::parse(got.text);
  const auto argv = echo["argv"].get<std::vector<std::string>>();
  const auto follows = [&](const std::string& flag) {
    const auto at = std::find(argv.begin(), argv.end(), flag);
    return at == argv.end() || at + 1 == argv.end() ? std::string("none") : *(at + 1);
  };
  CHECK(follows("--tools").empty());
  CHECK(follows("--setting-sources").empty());
  CHECK(std::count(argv.begin(), argv.end(), "--strict-mcp-config") == 1);
  CHECK(std::count(argv.begin(), argv.end(), "--no-session-persistence") == 1);
  for (const auto& argument : argv) CHECK(argument.find("Be a test.") == std::string::npos);
  const auto names = echo["environment"].get<std::vector<std::string>>();
  CHECK(std::count(names.begin(), names.end(), "ANTHROPIC_API_KEY") == 1);
  CHECK(std::count(names.begin(), names.end(), "API_KEY") == 0);
}

TEST_CASE("claude_process: deltas come as they were written, however their bytes arrive") {
  const auto plain = run("text say=\"a bb ccc dddd\"");
  REQUIRE(plain.stopped);
  CHECK(plain.text == "a bb ccc dddd");
  CHECK(plain.deltas.size() == 4);
  for (const std::string how : {"split", "burst"}) {
    CAPTURE(how);
    turn_request request = asking("text say=\"a bb ccc dddd\"");
    request.messages.back().parts.push_back(claude_openai::text_part{told(how)});
    const auto got = run(request);
    CHECK(got.stopped);
    CHECK(got.deltas == plain.deltas);
  }
}

TEST_CASE("claude_process: usage and cost are the API's and the CLI's own") {
  const auto got = run("text n=1 in=11 out=22 cache_read=33 cache_write=44");
  REQUIRE(got.stopped);
  const auto& usage = got.stopped->usage;
  CHECK(usage.input == 11);
  CHECK(usage.output == 22);
  CHECK(usage.cache_read == 33);
  CHECK(usage.cache_write == 44);
  REQUIRE(usage.cost_usd);
  CHECK(*usage.cost_usd == doctest::Approx(0.000135));
}

TEST_CASE("claude_process: an answer ends where the API ended it, not where the CLI goes on") {
  const auto cut = run("max_tokens say=\"as far as\"");
  REQUIRE(cut.stopped);
  CHECK(cut.stopped->reason == claude_openai::stop_reason::max_tokens);
  CHECK(cut.text == "as far as");
  const auto refused = run("refusal say=\"I had begun\"");
  REQUIRE(refused.stopped);
  CHECK(refused.stopped->reason == claude_openai::stop_reason::refusal);
  CHECK(refused.text == "I had begun");
  const auto stopped = run("stop_sequence value=HALT say=\"before it\"");
  REQUIRE(stopped.stopped);
  CHECK(stopped.stopped->reason == claude_openai::stop_reason::stop_sequence);
  CHECK(stopped.stopped->stop_sequence == "HALT");
}

TEST_CASE("claude_process: when the API's stream broke, each part of the answer is told once") {
  for (const std::string shape : {"old=0", "old=1"}) {
    CAPTURE(shape);
    const auto same = run("retry_midstream how=same " + shape);
    REQUIRE(same.stopped);
    CHECK(same.text == "Hello there old friend.");
    const auto whole = run("retry_midstream how=assistant_only " + shape);
    REQUIRE(whole.stopped);
    CHECK(whole.text == "Hello there old friend.");
    const auto other = run("retry_midstream how=different " + shape);
    REQUIRE(other.stopped);
    CHECK(other.text == "Quite another text.");
    auto request = asking("retry_midstream how=different " + shape);
    request.stream = true;
    const auto streamed = run(request);
    check_failed(streamed, error_kind::bad_gateway, "differs");
    CHECK(streamed.text == "Hello there");
  }
}

TEST_CASE("claude_process: the API's failures keep their kind and their words") {
  const std::vector<std::pair<int, error_kind>> kinds{
      {400, error_kind::invalid_request}, {401, error_kind::authentication},
      {403, error_kind::permission},      {404, error_kind::not_found},
      {413, error_kind::too_large},       {429, error_kind::rate_limited},
      {500, error_kind::upstream_failed}, {529, error_kind::overloaded}};
  for (const auto& each : kinds) {
    const auto status = std::to_string(each.first);
    CAPTURE(status);
    const auto got = run("api_error status=" + status + " say=\"what was wrong\"");
    check_failed(got, each.second, "what was wrong");
    CHECK(got.text.empty());
  }
  const auto later = run("api_error status=529 after=2");
  check_failed(later, error_kind::overloaded, "said 529");
  CHECK(later.text == "w w ");
}

TEST_CASE("claude_process: a retry delay is told to the client, in fractions too") {
  const auto got = run("api_error status=429 delay_ms=2530.597");
  REQUIRE(got.error);
  REQUIRE(got.error->retry_after);
  CHECK(got.error->retry_after->count() == 2530);
}

TEST_CASE("claude_process: a retry that is far away is left to the client at once") {
  const auto start = steady::now();
  const auto got = run("api_error status=429 delay_ms=60000 wait_ms=30000");
  check_failed(got, error_kind::rate_limited, "");
  REQUIRE(got.error->retry_after);
  CHECK(got.error->retry_after->count() == 60000);
  CHECK(elapsed_since(start) < 10s * patience);
}

TEST_CASE("claude_process: a limit of the plan is known, though nobody reads the answer") {
  driven_process process;
  process.begin(asking("rate_limit status=rejected"));
  REQUIRE(process.pump_until([&] { return !process.limits().all().empty(); }));
  CHECK(process.limits().all()[0].status == "rejected");
  CHECK(process->refused_by_plan());
}

TEST_CASE("claude_process: an account that is not logged in is told what to do") {
  check_failed(run("not_logged_in"), error_kind::unavailable, "claude auth login");
}

TEST_CASE("claude_process: an error of the CLI's own is an error") {
  check_failed(run("error_result"), error_kind::bad_gateway, "told to fail");
  check_failed(run("error_result after=2"), error_kind::bad_gateway, "told to fail");
  check_failed(run("error_result subtype=error_max_turns"), error_kind::bad_gateway,
               "told to fail");
}

TEST_CASE("claude_process: a process that dies is told with its ending and its last words") {
  const auto early = run("crash code=9");
  check_failed(early, error_kind::bad_gateway, "going down as told");
  CHECK(early.error->message.find("exit code 9") != std::string::npos);
  const auto killed = run("crash after=1 signal=9");
  check_failed(killed, error_kind::bad_gateway, "signal 9");
  CHECK(killed.text == "w0");
  check_failed(run("crash at=stop"), error_kind::bad_gateway, "exit code 1");
  check_failed(run("exit_zero"), error_kind::bad_gateway, "exit code 0");
  check_failed(run("exit_zero after=1"), error_kind::bad_gateway, "exit code 0");
  check_failed(run("text", "crash_at_start\n"), error_kind::bad_gateway, "cannot start, as told");
  check_failed(run("text", "exit_at_start\n"), error_kind::bad_gateway, "exit code 0");
  check_failed(run("text", "crash_in_initialize\n"), error_kind::bad_gateway, "exit code 1");
  check_failed(run("text", "error_in_initialize\n"), error_kind::bad_gateway, "failed as told");
}

TEST_CASE("claude_process: one that dies while history is told is an error, and is lost") {
  driven_process process("crash_in_replay after=1\n");
  check_failed(process.ask(chat({"1", "2", "3", "4", told("text")})), error_kind::bad_gateway,
               "exit code 1");
  CHECK(process->failed_before_first_event());
}

TEST_CASE("claude_process: it is lost only while nothing was told of its turn") {
  driven_process early, late;
  REQUIRE(early.ask(asking("crash")).error);
  CHECK(early->failed_before_first_event());
  REQUIRE(late.ask(asking("crash after=1")).error);
  CHECK_FALSE(late->failed_before_first_event());
}

TEST_CASE("claude_process: what is no protocol ends the turn, what is only unknown does not") {
  const std::string whole = "w0 w1 w2";
  for (const std::string kind : {"not_json", "not_object", "invalid_utf8", "nul"}) {
    CAPTURE(kind);
    const auto got = run("malformed kind=" + kind);
    check_failed(got, error_kind::bad_gateway, "claude");
    CHECK(got.text == "w0");
  }
  check_failed(run("malformed kind=cut_off"), error_kind::bad_gateway, "exit code 0");
  const auto unknown = run("malformed kind=unknown_types");
  REQUIRE(unknown.stopped);
  CHECK(unknown.text == whole);
}

TEST_CASE(
    "claude_process: lines with members missing, wrong or out of order never corrupt an answer") {
  for (const std::string kind : {"missing_fields", "wrong_types", "deep", "out_of_order"}) {
    CAPTURE(kind);
    const auto got = run("malformed kind=" + kind);
    REQUIRE(got.ended());
    if (got.stopped) CHECK(got.text == "w0 w1 w2");
  }
}

TEST_CASE("claude_process: long lines come whole, endless ones are an error") {
  const auto long_one = run("huge_line mib=8");
  REQUIRE(long_one.stopped);
  CHECK(long_one.text.size() == 8U << 20);
  check_failed(run("huge_line mib=80 endless=1"), error_kind::bad_gateway, "endless line");
}

TEST_CASE("claude_process: a flood on stderr blocks nothing, and its end is kept for the error") {
  turn_request request = asking("text n=2");
  request.messages.back().parts.push_back(
      claude_openai::text_part{told("stderr_flood bytes=4000000")});
  const auto got = run(request);
  CHECK(got.stopped);
  request = asking("crash");
  request.messages.back().parts.push_back(
      claude_openai::text_part{told("stderr_flood bytes=4000000")});
  const auto crashed = run(request);
  check_failed(crashed, error_kind::bad_gateway, "going down as told");
  CHECK(crashed.error->message.size() < 4096);
}

TEST_CASE("claude_process: 5 MB go to a slow reader that itself talks before it reads on") {
  turn_request request = asking("echo");
  request.messages.back().parts.push_back(claude_openai::text_part{std::string(5'000'000, 'p')});
  const auto got =
      run(request, "slow_reader chunk=65536 pause_ms=1\nwrite_before_read bytes=400000\n");
  REQUIRE(got.stopped);
  const auto echo = json::parse(got.text);  // 5 MB came back as well
  CHECK(echo["history"][0]["content"][1]["text"].get_ref<const std::string&>().size() == 5'000'000);
}

TEST_CASE("claude_process: bytes that are no UTF-8 reach the process as replacement characters") {
  turn_request request = asking("echo");
  request.messages.back().parts.push_back(claude_openai::text_part{"<\xff\xc3\x28>"});
  const auto got = run(request);
  REQUIRE(got.stopped);
  CHECK(json::parse(got.text)["history"][0]["content"][1]["text"] == "<\xEF\xBF\xBD\xEF\xBF\xBD(>");
}

TEST_CASE("claude_process: control characters and line ends in a prompt stay inside their line") {
  turn_request request = asking("echo");
  constexpr char raw[] = "a\nb\r\nc\0d\x1b[0m\xE2\x80\xA8\"e\\";
  const std::string words(raw, sizeof raw - 1);
  request.messages.back().parts.push_back(claude_openai::text_part{words});
  const auto got = run(request);
  REQUIRE(got.stopped);
  CHECK(json::parse(got.text)["history"][0]["content"][1]["text"] == words);
}
