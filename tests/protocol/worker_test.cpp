// One process and its turn: whatever it says or does, there is one clear end.
#include "proxy_support.hpp"

using namespace protocol_test;
using claude_openai::child_guard;
using claude_openai::error_kind;
using claude_openai::turn_request;
using claude_openai::worker;

namespace {

/// Moves the worker's bytes until the turn has ended, or the time is over.
outcome finish_turn(worker& process, milliseconds within = 20s) {
  outcome got;
  const auto deadline = steady::now() + within * slowness;
  while (!got.ended() && steady::now() < deadline) {
    std::vector<pollfd> entries;
    process.add_poll_entries(entries);
    ::poll(entries.data(), static_cast<nfds_t>(entries.size()), 50);
    process.pump();
    while (const auto what = process.pop()) got.add(*what);
  }
  return got;
}

std::unique_ptr<worker> start(const stand_in& program, const child_guard& guard) {
  return std::make_unique<worker>(
      claude_openai::make_command(options_for(program), {"claude-test"}), guard);
}

/// One turn of a fresh stand-in.
outcome run(const turn_request& request, const std::string& configuration = "") {
  const stand_in program(configuration);
  const child_guard guard;
  const auto process = start(program, guard);
  process->begin(request, 0);
  return finish_turn(*process);
}

outcome run(const std::string& wish, const std::string& configuration = "") {
  return run(asking(wish), configuration);
}

/// Lets the process read until that holds.
template <typename predicate>
bool pump_until(worker& process, predicate holds, milliseconds within = 5s) {
  return eventually(
      [&] {
        process.pump();
        return holds();
      },
      within);
}

}  // namespace

TEST_CASE("worker: a process is warm when it has answered, and silent until it is asked") {
  const stand_in program;
  const child_guard guard;
  const auto process = start(program, guard);
  CHECK(pump_until(*process, [&] { return process->warm(); }));
  CHECK_FALSE(process->lost());
  CHECK_FALSE(process->pop());
}

TEST_CASE("worker: a process that reads nothing is not warm, and not lost either") {
  const stand_in program("never_warm\n");
  const child_guard guard;
  const auto process = start(program, guard);
  CHECK_FALSE(pump_until(
      *process, [&] { return process->warm() || process->lost(); }, milliseconds(300 / slowness)));
}

TEST_CASE("worker: the process is told everything once, in order, with roles") {
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

TEST_CASE("worker: what an opened process rehearses is no part of the conversation") {
  const stand_in program("slow_replay ms=50\n");
  const child_guard guard;
  turn_request request = asking("echo");
  request.messages.insert(request.messages.begin(), {user_says("past"), assistant_says("yes")});
  for (const bool hurried : {false, true}) {  // the request comes after it, or in the midst of it
    CAPTURE(hurried);
    const auto process = start(program, guard);
    REQUIRE(pump_until(*process, [&] { return process->warm(); }));
    process->open(claude_openai::make_opening(request), true);
    REQUIRE(pump_until(*process, [&] { return process->introduction().is_object(); }));
    CHECK_FALSE(process->warm());
    if (!hurried) REQUIRE(pump_until(*process, [&] { return process->warm(); }));
    process->begin(request, 0);
    const auto got = finish_turn(*process);
    REQUIRE(got.stopped);
    const auto echo = json::parse(got.text);
    CHECK(echo["told"]["initialized"] == 1);
    CHECK(echo["told"]["rewound"] == 1);
    CHECK(echo["unacknowledged"] == 0);
    REQUIRE(echo["history"].size() == 3);
    CHECK(echo["history"][0]["content"][0]["text"] == "past");
  }
}

TEST_CASE("worker: who rehearses nothing: an old process, one that must not, one that is asked") {
  const child_guard guard;
  const auto rehearses = [&](const char* version, bool may, bool asked_at_once) {
    const stand_in program(std::string("version value=") + version + "\n");
    const auto request = asking("echo");
    const auto process = start(program, guard);
    process->open(claude_openai::make_opening(request), may);
    if (!asked_at_once) REQUIRE(pump_until(*process, [&] { return process->warm(); }));
    if (!asked_at_once) pump_until(*process, [&] { return process->introduction().is_object(); });
    process->begin(request, 0);
    const auto got = finish_turn(*process);
    REQUIRE(got.stopped);
    const bool told = json::parse(got.text)["told"].contains("rewinds_asked");
    CHECK(process->rehearsed() == told);
    return told;
  };
  CHECK(rehearses("2.1.330", true, false));
  CHECK_FALSE(rehearses("2.1.330", true, true));
  CHECK_FALSE(rehearses("2.1.330", false, false));
  CHECK_FALSE(rehearses("2.1.329", true, false));
}

TEST_CASE("worker: a process that fails in its rehearsal is lost") {
  for (const std::string wrong :
       {"answers_rehearsal", "refuses_rewind", "crash_in_replay", "hang_in_replay"}) {
    CAPTURE(wrong);
    const stand_in program(wrong + "\n");
    const child_guard guard;
    const auto process = start(program, guard);
    process->open(claude_openai::make_opening(asking("text")), true);
    CHECK(pump_until(
        *process, [&] { return process->lost(); }, 15s));
    CHECK(process->failed_rehearsal());
    CHECK_FALSE(process->alive());
  }
}

TEST_CASE("worker: a request that came in a rehearsal that fails is told so") {
  const stand_in program("slow_replay ms=50\nrefuses_rewind\n");
  const child_guard guard;
  const auto process = start(program, guard);
  process->open(claude_openai::make_opening(asking("text")), true);
  REQUIRE(pump_until(*process, [&] { return process->introduction().is_object(); }));
  process->begin(asking("text"), 0);
  const auto got = finish_turn(*process);
  REQUIRE(got.error);
  CHECK(got.error->kind == error_kind::bad_gateway);
  CHECK(process->lost());
}

TEST_CASE("worker: a history that begins with the assistant is told in order too") {
  turn_request request = asking("echo");
  request.messages.insert(request.messages.begin(), assistant_says("I began"));
  const auto got = run(request);
  REQUIRE(got.stopped);
  const auto echo = json::parse(got.text);
  REQUIRE(echo["history"].size() == 2);
  CHECK(echo["history"][0]["role"] == "assistant");
}

TEST_CASE("worker: the process is started without tools, settings or keys of clients") {
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

TEST_CASE("worker: deltas come as they were written, however their bytes arrive") {
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

TEST_CASE("worker: usage and cost are the API's and the CLI's own") {
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

TEST_CASE("worker: an answer ends where the API ended it, not where the CLI goes on") {
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

TEST_CASE("worker: when the API's stream broke, each part of the answer is told once") {
  for (const std::string shape : {"old=0", "old=1"}) {
    CAPTURE(shape);
    const auto same = run("retry_midstream how=same " + shape);
    REQUIRE(same.stopped);
    CHECK(same.text == "Hello there old friend.");
    const auto whole = run("retry_midstream how=assistant_only " + shape);
    REQUIRE(whole.stopped);
    CHECK(whole.text == "Hello there old friend.");
    const auto other = run("retry_midstream how=different " + shape);
    check_failed(other, error_kind::bad_gateway, "differs");
    CHECK(other.text == "Hello there");
  }
}

TEST_CASE("worker: the API's failures keep their kind and their words") {
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

TEST_CASE("worker: a retry delay is told to the client, in fractions too") {
  const auto got = run("api_error status=429 delay_ms=2530.597");
  REQUIRE(got.error);
  REQUIRE(got.error->retry_after);
  CHECK(got.error->retry_after->count() == 2530);
}

TEST_CASE("worker: a retry that is far away is left to the client at once") {
  const auto start = steady::now();
  const auto got = run("api_error status=429 delay_ms=60000 wait_ms=30000");
  check_failed(got, error_kind::rate_limited, "");
  REQUIRE(got.error->retry_after);
  CHECK(got.error->retry_after->count() == 60000);
  CHECK(elapsed_since(start) < 10s * slowness);
}

TEST_CASE("worker: an account that is not logged in is told what to do") {
  check_failed(run("not_logged_in"), error_kind::unavailable, "claude auth login");
}

TEST_CASE("worker: an error of the CLI's own is an error") {
  check_failed(run("error_result"), error_kind::bad_gateway, "told to fail");
  check_failed(run("error_result after=2"), error_kind::bad_gateway, "told to fail");
  check_failed(run("error_result subtype=error_max_turns"), error_kind::bad_gateway,
               "told to fail");
}

TEST_CASE("worker: a process that dies is told with its ending and its last words") {
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

TEST_CASE("worker: a process that dies while history is told is an error, and is lost") {
  const stand_in program("crash_in_replay after=1\n");
  const child_guard guard;
  const auto process = start(program, guard);
  turn_request request = asking("text");
  const auto question = request.messages.back();
  request.messages = {user_says("1"), assistant_says("2"), user_says("3"), assistant_says("4"),
                      question};
  process->begin(request, 0);
  check_failed(finish_turn(*process), error_kind::bad_gateway, "exit code 1");
  CHECK(process->lost());
}

TEST_CASE("worker: a process is lost only while nothing was told of its turn") {
  const stand_in program;
  const child_guard guard;
  const auto early = start(program, guard);
  early->begin(asking("crash"), 0);
  REQUIRE(finish_turn(*early).error);
  CHECK(early->lost());
  const auto late = start(program, guard);
  late->begin(asking("crash after=1"), 0);
  REQUIRE(finish_turn(*late).error);
  CHECK_FALSE(late->lost());
}

TEST_CASE("worker: what is no protocol ends the turn, what is only unknown does not") {
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

TEST_CASE("worker: lines with members missing, wrong or out of order never corrupt an answer") {
  for (const std::string kind : {"missing_fields", "wrong_types", "deep", "out_of_order"}) {
    CAPTURE(kind);
    const auto got = run("malformed kind=" + kind);
    REQUIRE(got.ended());
    if (got.stopped) CHECK(got.text == "w0 w1 w2");
  }
}

TEST_CASE("worker: long lines come whole, endless ones are an error") {
  const auto long_one = run("huge_line mib=8");
  REQUIRE(long_one.stopped);
  CHECK(long_one.text.size() == 8U << 20);
  check_failed(run("huge_line mib=80 endless=1"), error_kind::bad_gateway, "endless line");
}

TEST_CASE("worker: a flood on stderr blocks nothing, and its end is kept for the error") {
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

TEST_CASE("worker: 5 MB go to a slow reader that itself talks before it reads on") {
  turn_request request = asking("echo");
  request.messages.back().parts.push_back(claude_openai::text_part{std::string(5'000'000, 'p')});
  const auto got =
      run(request, "slow_reader chunk=65536 pause_ms=1\nwrite_before_read bytes=400000\n");
  REQUIRE(got.stopped);
  const auto echo = json::parse(got.text);  // 5 MB came back as well
  CHECK(echo["history"][0]["content"][1]["text"].get_ref<const std::string&>().size() == 5'000'000);
}

TEST_CASE("worker: bytes that are no UTF-8 reach the process as replacement characters") {
  turn_request request = asking("echo");
  request.messages.back().parts.push_back(claude_openai::text_part{"<\xff\xc3\x28>"});
  const auto got = run(request);
  REQUIRE(got.stopped);
  CHECK(json::parse(got.text)["history"][0]["content"][1]["text"] == "<\xEF\xBF\xBD\xEF\xBF\xBD(>");
}

TEST_CASE("worker: control characters and line ends in a prompt stay inside their line") {
  turn_request request = asking("echo");
  constexpr char raw[] = "a\nb\r\nc\0d\x1b[0m\xE2\x80\xA8\"e\\";
  const std::string words(raw, sizeof raw - 1);
  request.messages.back().parts.push_back(claude_openai::text_part{words});
  const auto got = run(request);
  REQUIRE(got.stopped);
  CHECK(json::parse(got.text)["history"][0]["content"][1]["text"] == words);
}
