// One process as a cursor in a conversation: its states, what it takes back, and what it holds then.
#include "process_support.hpp"

using namespace protocol_test;
using claude_openai::error_kind;
using claude_openai::turn_request;
using refusal = claude_openai::claude_process::refusal;
using places = std::vector<std::size_t>;

namespace {

/// The texts that a process holds, by its answer to `[[echo]]`.
std::string held_in(const json& echo) {
  std::string texts;
  for (const auto& said : echo["history"]) {
    for (const auto& block : said["content"]) {
      texts += (block.is_object() ? block.value("text", "") : said["content"].dump()) + "|";
      if (!block.is_object()) break;
    }
  }
  return texts;
}

turn_request with_tools(turn_request request) {
  for (const char* name : {"a", "b"}) {
    request.tools.push_back({name, "", claude_openai::json::parse(R"({"type":"object"})")});
  }
  return request;
}

/// The results of these calls, in this order; each says which call it is of.
claude_openai::message results_of(const std::vector<std::string>& calls,
                                  const std::vector<std::string>& texts) {
  claude_openai::message said;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    said.parts.emplace_back(
        claude_openai::tool_result_part{calls[i], {claude_openai::text_part{texts[i]}}});
  }
  return said;
}

/// Brings a process to where it waits for the results of two calls.
void park(driven_process& process) {
  process.answer(with_tools(asking("tool names=a,b")));
  REQUIRE(process->now() == state::awaiting_tool_results);
}

/// The request that brings results, with the calls under the names that the client has for them.
turn_request with_results(const driven_process& process, const std::vector<std::string>& names,
                          const std::vector<std::string>& calls,
                          const std::vector<std::string>& texts) {
  auto request = process.next("");
  auto& reply = request.messages[request.messages.size() - 2];
  std::size_t place = 0;
  for (auto& part : reply.parts) {
    auto* call = std::get_if<claude_openai::tool_call_part>(&part);
    if (call != nullptr) call->id = names.at(place++);
  }
  request.messages.back() = results_of(calls, texts);
  return request;
}

/// Checks that nothing is left of what the process held, and that another turn knows nothing of it.
void check_empty(driven_process& process) {
  CHECK(process->now() == state::idle);
  CHECK(process.messages_held() == 0);
  CHECK(process->cursor().held.words.empty());
  CHECK(process.marks().empty());
  const auto echo = json::parse(process.answer(asking("echo")));
  CHECK(held_in(echo) == "[[echo]]|");
  CHECK(process->now() == state::idle);
  CHECK(process.messages_held() == 2);
  CHECK(process.marks() == places{0});
}

}  // namespace

// ---- going on -----------------------------------------------------------------------------------

TEST_CASE("cursor: a turn is begun, told, answered, accepted, and then the process is idle") {
  driven_process process("slow_replay ms=20\n");
  REQUIRE(process.reaches(state::ready));
  process.begin(chat({"1", "2", told("text say=yes")}));
  CHECK(process->now() == state::replaying);
  CHECK(process.reaches(state::answering));
  const auto got = process.finish();
  REQUIRE(got.stopped);
  CHECK(process->now() == state::answering);  // until the client's end of it is known
  process.accept();
  CHECK(process->now() == state::idle);
  CHECK(process.messages_held() == 4);
  CHECK(process.marks() == places{0, 2});
  CHECK(process->cursor().held.words ==
        make_trace(process.next("")).words.substr(0, process->cursor().held.words.size()));
}

TEST_CASE("cursor: a later turn is told only what is new") {
  driven_process process;
  process.answer(chat({told("text say=one")}));
  const auto echo = json::parse(process.answer(process.next(told("echo")), 2));
  CHECK(held_in(echo) == "[[text say=one]]|\"one\"|[[echo]]|");
  CHECK(echo["told"]["initialized"] == 1);
  CHECK_FALSE(echo["told"].contains("rewinds_asked"));
  CHECK(process.messages_held() == 4);
  CHECK(process.marks() == places{0, 2});
}

TEST_CASE("cursor: a turn that is asked of a process that still starts is answered") {
  driven_process process("slow_start ms=100\n");
  process.begin(asking("text say=hi"));
  CHECK(process->now() == state::answering);
  CHECK(process.finish().text == "hi");
}

TEST_CASE("cursor: results of tools go on with the turn, and the process is idle after it") {
  driven_process process;
  park(process);
  CHECK(process.messages_held() == 2);
  CHECK(process.marks() == places{0});
  const auto ids = call_ids(process.reply());
  REQUIRE(ids.size() == 2);
  const auto text = process.answer(with_results(process, ids, ids, {"sun", "rain"}), 2);
  CHECK(text.find("sun") < text.find("rain"));
  CHECK(process->now() == state::idle);
  CHECK(process.messages_held() == 4);
  CHECK(process.marks() == places{0});  // results are taken back with their question
  process.begin(asking("echo"));
  REQUIRE(process.finish().stopped);
  process.accept();
  CHECK(process.messages_held() == 2);
}

TEST_CASE(
    "cursor: results find their calls by place, however the client has named and sorted them") {
  const auto answer_to = [](const std::vector<std::string>& names,
                            const std::vector<std::string>& calls,
                            const std::vector<std::string>& texts) {
    driven_process process;
    park(process);
    const auto own = call_ids(process.reply());
    const auto real = [&](std::vector<std::string> ids) {
      for (auto& id : ids) {
        if (id == "own_0") id = own[0];
        if (id == "own_1") id = own[1];
      }
      return ids;
    };
    process.begin(with_results(process, real(names), real(calls), texts), 2);
    const auto got = process.finish(3s);
    REQUIRE(got.stopped);
    return got.text.find("first") < got.text.find("second");
  };
  CHECK(answer_to({"own_0", "own_1"}, {"own_0", "own_1"}, {"first", "second"}));
  CHECK(answer_to({"own_0", "own_1"}, {"own_1", "own_0"}, {"second", "first"}));
  CHECK(answer_to({"x", "y"}, {"x", "y"}, {"first", "second"}));
  CHECK(answer_to({"x", "y"}, {"y", "x"}, {"second", "first"}));
  CHECK(answer_to({"f", "f"}, {"f", "f"}, {"first", "second"}));
  CHECK(answer_to({"x", "own_1"}, {"own_1", "x"}, {"second", "first"}));
  CHECK(answer_to({"own_1", "own_0"}, {"own_1", "own_0"}, {"first", "second"}));
}

TEST_CASE("cursor: a process that goes on by itself is dead") {
  driven_process idle;
  idle.answer(asking("wakes ms=30"));
  CHECK(idle->now() == state::idle);
  CHECK(idle.reaches(state::dead));
  CHECK_FALSE(idle->pop());
}

// ---- back ---------------------------------------------------------------------------------------

TEST_CASE("cursor: back to the start, nothing is left of the conversation before") {
  driven_process process;
  process.answer(chat({told("text say=secret-1")}));
  const auto held = process->cursor().held.words;
  process.begin(asking("echo"));
  CHECK(process->now() == state::rewinding);
  CHECK(process->cursor().held.words == held);  // until the process has confirmed it
  const auto got = process.finish();
  REQUIRE(got.stopped);
  process.accept();
  const auto echo = json::parse(got.text);
  CHECK(held_in(echo) == "[[echo]]|");
  CHECK(echo["told"]["rewound"] == 1);
  CHECK(echo["told"]["initialized"] == 1);
  CHECK(process.marks() == places{0});
  CHECK(process->now() == state::idle);
}

TEST_CASE("cursor: back to the middle, one message after the other, the rest is kept") {
  driven_process process;
  process.answer(chat({told("text say=a1")}));
  process.answer(process.next(told("text say=a2")), 2);
  process.answer(process.next(told("text say=a3")), 4);
  REQUIRE(process.marks() == places{0, 2, 4});
  const auto edited = chat({told("text say=a1"), "a1", told("echo")});
  const auto echo = json::parse(process.answer(edited, 2));
  CHECK(held_in(echo) == "[[text say=a1]]|\"a1\"|[[echo]]|");
  CHECK(echo["told"]["rewound"] == 2);
  CHECK(process.marks() == places{0, 2});
  CHECK(process.messages_held() == 4);
}

TEST_CASE("cursor: after a step back the missing history is told before the question") {
  driven_process process("slow_replay ms=5\n");
  process.answer(chat({"q1", "a1", told("text say=a2")}));
  const auto branch = chat({"q1", "a1", "q2", "b2", "q3", "b3", told("echo")});
  const auto echo = json::parse(process.answer(branch, 2));
  CHECK(held_in(echo) == "q1|a1|q2|b2|q3|b3|[[echo]]|");
  CHECK(echo["unacknowledged"] == 0);
  CHECK(process.marks() == places{0, 2, 4, 6});
}

TEST_CASE("cursor: history that was told is taken back like what was answered, with its results") {
  driven_process process;
  auto request = with_tools(chat({"q1", "", told("text say=done")}));
  auto& calls = request.messages[1].parts;
  calls = {claude_openai::tool_call_part{"c", "a", claude_openai::json::object()}};
  request.messages.insert(request.messages.begin() + 2, results_of({"c"}, {"sunny"}));
  request.messages.insert(request.messages.begin() + 3, assistant_says("It is sunny."));
  process.answer(request);
  CHECK(process.marks() == places{0, 4});
  const auto echo = json::parse(process.answer(with_tools(asking("echo"))));
  CHECK(held_in(echo) == "[[echo]]|");
  CHECK(echo["told"]["rewound"] == 2);
}

TEST_CASE("cursor: calls that nobody answers are interrupted and taken back") {
  driven_process process;
  park(process);
  process.begin(with_tools(asking("echo")));
  CHECK(process->now() == state::rewinding);
  const auto got = process.finish();
  REQUIRE(got.stopped);
  CHECK(held_in(json::parse(got.text)) == "[[echo]]|");
  process.accept();
  CHECK(process->now() == state::idle);
}

TEST_CASE("cursor: what a turn asks beside its messages is told anew after a step back") {
  driven_process process;
  auto warm = asking("text");
  warm.sampling.temperature = 0.25;
  process.answer(warm);
  const auto cold = json::parse(process.answer(asking("echo")));
  CHECK(cold["settings"].dump().find("temperature") == std::string::npos);
  process.answer(warm);
  warm.messages = {user_says(told("echo"))};
  const auto same = json::parse(process.answer(warm));
  CHECK(same["settings"].dump().find("0.25") != std::string::npos);
  CHECK(same["told"]["settings_told"] == 4);  // the probe, and each time that it differed
}

TEST_CASE("cursor: what an interrupted turn has cost is no later turn's") {
  for (const bool parked : {false, true}) {
    CAPTURE(parked);
    driven_process process;
    if (parked) {
      park(process);
    } else {
      process.begin(asking("hang after=2"));
      REQUIRE(process.pump_until([&] { return process->pop().has_value(); }));
      process->release(true);
      REQUIRE(process.reaches(state::idle));
    }
    const auto got = process.ask(with_tools(asking("text")));
    REQUIRE(got.stopped);
    REQUIRE(got.stopped->usage.cost_usd);
    CHECK(*got.stopped->usage.cost_usd == doctest::Approx(0.000135));
    CHECK(process->usage().charge_usd == doctest::Approx(0.000135));
  }
}

// ---- release ------------------------------------------------------------------------------------

TEST_CASE("cursor: to release a process that serves no turn changes nothing") {
  driven_process process("slow_start ms=50\n");
  process->release(true);
  CHECK(process->now() == state::starting);
  REQUIRE(process.reaches(state::ready));
  for (const bool may : {true, false}) {
    CAPTURE(may);
    process->release(may);
    CHECK(process->now() == state::ready);
  }
  park(process);
  for (const bool may : {true, false}) {
    process->release(may);
    CHECK(process->now() == state::awaiting_tool_results);
  }
  const auto ids = call_ids(process.reply());
  process.answer(with_results(process, ids, ids, {"sun", "rain"}), 2);
  for (const bool may : {true, false}) {
    process->release(may);
    CHECK(process->now() == state::idle);
    CHECK(process.messages_held() == 4);
  }
}

TEST_CASE("cursor: an answer that is released is interrupted and taken back") {
  for (const std::string wish :
       {"hang", "hang after=2", "hang at=stop", "text n=2000 delay_ms=5"}) {
    CAPTURE(wish);
    driven_process process;
    process.begin(asking(wish));
    process.pump_until([&] { return process->pop().has_value(); }, 200ms);
    process->release(true);
    CHECK(process->now() == state::rewinding);
    REQUIRE(process.reaches(state::idle));
    CHECK_FALSE(process->pop());
    check_empty(process);
  }
}

TEST_CASE("cursor: a confirmation that nobody asked for counts for nothing") {
  driven_process process("confirms_unasked");
  process.begin(asking("hang after=1"));
  REQUIRE(process.pump_until([&] { return process->pop().has_value(); }));
  process->release(true);
  REQUIRE(process.reaches(state::idle));
  check_empty(process);
}

TEST_CASE("cursor: of a chat only the turn that is released is taken back") {
  driven_process process;
  process.answer(chat({told("text say=a1")}));
  process.begin(process.next(told("hang after=1")), 2);
  REQUIRE(process.pump_until([&] { return process->pop().has_value(); }));
  process->release(true);
  REQUIRE(process.reaches(state::idle));
  CHECK(process.messages_held() == 2);
  CHECK(process.marks() == places{0});
  const auto again = chat({told("text say=a1"), "a1", told("echo")});
  const auto echo = json::parse(process.answer(again, 2));
  CHECK(held_in(echo) == "[[text say=a1]]|\"a1\"|[[echo]]|");
}

TEST_CASE("cursor: a turn that has failed, or was not accepted, is taken back") {
  for (const std::string wish :
       {"api_error status=400", "api_error status=529 after=2", "error_result", "text",
        "api_error status=429 delay_ms=60000 wait_ms=30000", "tool names=a,b"}) {
    CAPTURE(wish);
    driven_process process;
    REQUIRE(process.ask(with_tools(asking(wish))).ended());
    CHECK(process->now() == state::answering);
    process->release(true);
    CHECK(process->now() == state::rewinding);
    REQUIRE(process.reaches(state::idle));
    CHECK(process.messages_held() == 0);
    const auto echo = json::parse(process.answer(with_tools(asking("echo"))));
    CHECK(held_in(echo) == "[[echo]]|");
  }
}

TEST_CASE("cursor: history that is being told is taken back to what the process has acknowledged") {
  driven_process process("slow_replay ms=30\n");
  process.begin(chat({"q1", "a1", "q2", "a2", told("text")}));
  REQUIRE(process->now() == state::replaying);
  REQUIRE(process.pump_until([&] { return process.marks().size() == 2; }));
  process->release(true);
  CHECK(process->now() == state::rewinding);
  REQUIRE(process.reaches(state::idle));
  CHECK(process.messages_held() == 2);
  CHECK(process.marks() == places{0});
  const auto echo = json::parse(process.answer(chat({"q1", "a1", told("echo")}), 2));
  CHECK(held_in(echo) == "q1|a1|[[echo]]|");
  process.begin(chat({"x1", "y1", told("text")}));
  REQUIRE(process.reaches(state::replaying));
  process->release(true);
  REQUIRE(process.reaches(state::idle));
  check_empty(process);
}

TEST_CASE("cursor: a turn that is released while the one before is taken back asks nothing") {
  driven_process process("slow_control ms=20\n");
  process.answer(chat({told("text say=a1")}));
  process.begin(asking("text say=never"));
  REQUIRE(process->now() == state::rewinding);
  process->release(true);
  CHECK(process->now() == state::rewinding);
  REQUIRE(process.reaches(state::idle));
  check_empty(process);
}

TEST_CASE("cursor: what may not be taken back is dead when it is released") {
  driven_process answering, taking, telling("slow_replay ms=30\n"), failed, ended;
  answering.begin(asking("hang"));
  answering->release(false);
  CHECK(answering->now() == state::dead);
  taking.answer(asking("text"));
  taking.begin(asking("text"));
  REQUIRE(taking->now() == state::rewinding);
  taking->release(false);
  CHECK(taking->now() == state::dead);
  telling.begin(chat({"q1", "a1", told("text")}));
  telling->release(false);
  CHECK(telling->now() == state::dead);
  failed.ask(asking("error_result"));
  failed->release(false);
  CHECK(failed->now() == state::dead);
  ended.ask(asking("crash"));
  REQUIRE(ended->now() == state::dead);
  ended->release(true);
  CHECK(ended->now() == state::dead);
}

TEST_CASE("cursor: agents, and answers that were cut, are never taken back") {
  driven_process cut;
  REQUIRE(cut.ask(asking("max_tokens")).stopped);
  cut.accept();
  cut->release(true);
  CHECK(cut->now() == state::dead);
  driven_process agent;
  auto request = asking("hang after=1");
  request.agent.emplace();
  agent.begin(request);
  REQUIRE(agent.pump_until([&] { return agent->pop().has_value(); }));
  agent->release(true);
  CHECK(agent->now() == state::dead);
  CHECK(agent->is_agent());
}

TEST_CASE("cursor: whoever waits for results is killed: on another signal it would ask the model") {
  driven_process idle, parked, released, back;
  idle.answer(asking("text"));
  CHECK(idle->ending().signal == SIGTERM);
  CHECK(idle->ending().close_input);
  park(parked);
  CHECK(parked->ending().signal == SIGKILL);
  REQUIRE(released.ask(with_tools(asking("tool names=a,b"))).stopped);
  released->release(false);  // before it was accepted: the client has left
  REQUIRE(released->now() == state::dead);
  CHECK(released->ending().signal == SIGKILL);
  park(back);
  back.begin(with_tools(asking("text")));
  REQUIRE(back->now() == state::rewinding);
  CHECK(back->ending().signal == SIGKILL);
  driven_process agent;
  auto request = asking("text");
  request.agent.emplace();
  agent.answer(request);
  CHECK(agent->ending().signal == SIGINT);
  CHECK_FALSE(agent->ending().close_input);
}

// ---- what takes nothing back --------------------------------------------------------------------

TEST_CASE("cursor: a process that takes a message back wrongly is lost, before anything is told") {
  struct fault {
    const char* configuration;
    refusal learned;
    const char* words;
  };
  for (const auto& each : {fault{"refuses_rewind", refusal::none, "did not take a message back"},
                           fault{"crash_in_rewind", refusal::none, "ended unexpectedly"},
                           fault{"talks_in_rewind", refusal::none, "went on by itself"},
                           fault{"no_rewind_to_start", refusal::first_message, "no preceding"},
                           fault{"unsupported_rewind", refusal::any_message, "Unsupported"}}) {
    const std::string configuration = each.configuration;
    CAPTURE(configuration);
    driven_process asked(configuration), released(configuration);
    asked.answer(asking("text"));
    const auto got = asked.ask(asking("text"));
    check_failed(got, error_kind::bad_gateway, each.words);
    CHECK(got.text.empty());
    CHECK(asked->failed_before_first_event());
    CHECK(asked->now() == state::dead);
    CHECK(asked->refused() == each.learned);
    released.begin(asking("hang after=1"));
    REQUIRE(released.pump_until([&] { return released->pop().has_value(); }));
    released->release(true);
    CHECK(released.reaches(state::dead));
    CHECK(released->refused() == each.learned);
  }
}

TEST_CASE("cursor: a process that fails at a later step back is lost too") {
  for (const std::string fault : {"refuses_rewind", "crash_in_rewind", "talks_in_rewind"}) {
    CAPTURE(fault);
    driven_process process(fault + " after=1\n");
    process.answer(chat({"q1", "a1", told("text")}));
    check_failed(process.ask(asking("text")), error_kind::bad_gateway, "");
    CHECK(process->failed_before_first_event());
    CHECK(process->now() == state::dead);
  }
}

TEST_CASE("cursor: a process that never answers is dead 6 seconds after it was asked to go back") {
  driven_process asked("no_answer_to_rewind\n"), later("no_answer_to_rewind after=1\n"), stopped;
  asked.answer(asking("text"));
  later.answer(chat({"q1", "a1", told("text")}));
  stopped.begin(asking("hang after=1"));
  REQUIRE(stopped.pump_until([&] { return stopped->pop().has_value(); }));
  const auto start = steady::now();
  asked.begin(asking("text"));
  later.begin(asking("text"));
  ::kill(stopped.program().sessions().back(), SIGSTOP);
  stopped->release(true);
  check_failed(asked.finish(30s), error_kind::bad_gateway, "takes nothing back");
  CHECK(elapsed_since(start) > 5900ms);
  CHECK(elapsed_since(start) < 30s);
  CHECK(asked->failed_before_first_event());
  check_failed(later.finish(30s), error_kind::bad_gateway, "takes nothing back");
  CHECK(stopped.reaches(state::dead));
}

TEST_CASE("cursor: where the first message stays, those after an answer are taken back") {
  driven_process process("no_rewind_to_start\n");
  process.answer(chat({told("text say=a1")}));
  process.answer(process.next(told("text say=a2")), 2);
  const auto edited = chat({told("text say=a1"), "a1", told("echo")});
  const auto echo = json::parse(process.answer(edited, 2));
  CHECK(held_in(echo) == "[[text say=a1]]|\"a1\"|[[echo]]|");
  CHECK(process->refused() == refusal::none);
}

// ---- wear ---------------------------------------------------------------------------------------

TEST_CASE("cursor: a process is worn after 500 turns") {
  driven_process process;
  for (int turn = 0; turn < 500; ++turn) {
    REQUIRE_FALSE(process->is_worn());
    process.answer(asking("text n=1"));
  }
  CHECK(process->is_worn());
  CHECK(process->now() == state::idle);
}

TEST_CASE("cursor: a process is worn when it has grown beyond 400 MiB") {
  driven_process small("memory mib=100\n"), large("memory mib=420\n");
  REQUIRE(small.reaches(state::ready, 20s));
  REQUIRE(large.reaches(state::ready, 20s));
  CHECK_FALSE(small->is_worn());
  CHECK(large->is_worn());
}
