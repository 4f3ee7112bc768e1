// The real CLI's lines, and what a chat client gets for them. The files in expected/ hold, for each
// turn of a transcript, the events and the exact bytes of the answer, streamed and whole.
//
// UPDATE_GOLDEN=1 writes the expected files anew: read each against its transcript, then keep it.
// GOLDEN_FOLDER names the transcripts of another version (`make compat`), all scenarios of it.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

namespace files = std::filesystem;
using namespace claude_openai;
using events = turn_decoder::events;

namespace {

files::path pinned() { return files::path(__FILE__).parent_path(); }

files::path folder() {
  const auto* other = std::getenv("GOLDEN_FOLDER");
  return other == nullptr ? pinned() : files::path(other);
}

/// How many versions there are transcripts of.
std::size_t versions() { return folder() == pinned() ? 3 : 1; }

std::string read_file(const files::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

/// The lines of one live turn; a message of the past is only acknowledged, and is not decoded.
using turn_lines = std::vector<json>;

struct transcript {
  std::string name;      ///< `plain.2.1.330`
  std::string scenario;  ///< `plain`
  std::string bytes;
  std::vector<turn_lines> turns;
};

bool is_acknowledgement(const json& result) {
  return string_of(result, "subtype") == "success" && integer_of(result, "num_turns") == 0;
}

/// The client's tools that wait for a result, by the API's id.
class parked_calls {
 public:
  /// True when the line says that the client has brought its results.
  bool answered_by(const json& line) {
    if (string_of(line, "type") == "control_request") {
      const auto& params = member_of(member_of(member_of(line, "request"), "message"), "params");
      const auto id = string_of(member_of(params, "_meta"), "claudecode/toolUseId");
      if (!id.empty()) ids_.insert(id);
    }
    if (string_of(line, "type") != "user") return false;
    const auto& content = member_of(member_of(line, "message"), "content");
    const auto is_known = [&](const json& block) {
      return ids_.count(string_of(block, "tool_use_id")) != 0;
    };
    const bool known = std::any_of(content.begin(), content.end(), is_known);
    if (known) ids_.clear();
    return known;
  }

 private:
  std::set<std::string> ids_;
};

/// Cut where the worker cuts: at `result` lines, and where a client brings what its tools answered.
std::vector<turn_lines> turns_of(const std::vector<json>& lines) {
  std::vector<turn_lines> turns;
  turn_lines current;
  parked_calls parked;
  for (const auto& line : lines) {
    if (parked.answered_by(line)) turns.push_back(std::exchange(current, {}));
    current.push_back(line);
    if (string_of(line, "type") != "result") continue;
    if (!is_acknowledgement(line)) turns.push_back(current);
    current.clear();
  }
  return turns;
}

std::vector<json> parse_lines(const std::string& bytes, std::size_t chunk) {
  std::vector<json> lines;
  line_splitter splitter;
  for (std::size_t at = 0; at < bytes.size(); at += chunk) {
    splitter.feed(std::string_view(bytes).substr(at, chunk));
    while (const auto line = splitter.next()) lines.push_back(json::parse(*line));
  }
  return lines;
}

const std::vector<transcript>& transcripts() {
  static const auto all = [] {
    std::map<std::string, transcript> found;
    for (const auto& entry : files::directory_iterator(folder())) {
      if (entry.path().extension() != ".jsonl") continue;
      transcript one;
      one.name = entry.path().stem().string();
      one.scenario = one.name.substr(0, one.name.find('.'));
      one.bytes = read_file(entry.path());
      one.turns = turns_of(parse_lines(one.bytes, one.bytes.size()));
      found.emplace(one.name, std::move(one));
    }
    std::vector<transcript> sorted;
    for (auto& [name, one] : found) sorted.push_back(std::move(one));
    return sorted;
  }();
  return all;
}

struct decoded {
  events told;
  bool cut = false;
  double cost = 0;  ///< of the process so far
};

/// What the client of a scenario had asked for.
answer_shape shape_of(const std::string& scenario) {
  turn_request request;
  request.shows_thinking = true;
  request.stream = true;
  if (text::starts_with(scenario, "tool_")) {
    request.tools.push_back({"get_weather", {}, json::object()});
    request.agent.emplace();  // the recorded names have their server's prefix
  }
  if (text::starts_with(scenario, "agent")) request.agent.emplace().show_activity = true;
  if (!text::starts_with(scenario, "schema_")) return make_answer_shape(request);
  request.schema = json::object();
  request.schema_field = "schema";
  auto shape = make_answer_shape(request);
  const std::vector<tool_definition> tools{{"get_weather", {}, json::object()}};
  if (scenario == "schema_tools") shape.names = tool_names(tools, "mcp__client__");
  return shape;
}

decoded decode(const transcript& one, const turn_lines& lines, double cost_before = 0) {
  decoded all;
  turn_decoder decoder(cost_before, shape_of(one.scenario));
  for (const auto& line : lines) decoder.decode(line, all.told);
  all.cut = decoder.was_cut();
  all.cost = decoder.meter().cost();
  return all;
}

// ---- events and answers as text -----------------------------------------------------------------

std::string quoted(const std::string& text) { return dump(json(text)); }

std::string tell(const token_usage& usage) {
  std::string told =
      "input=" + std::to_string(usage.input) + " cache_read=" + std::to_string(usage.cache_read) +
      " cache_write=" + std::to_string(usage.cache_write) + " (5m " +
      std::to_string(usage.cache_write_5m) + ", 1h " + std::to_string(usage.cache_write_1h) +
      ") output=" + std::to_string(usage.output);
  if (usage.thinking != 0) told += " thinking=" + std::to_string(usage.thinking);
  if (usage.cost_usd) told += " cost=" + dump(json(*usage.cost_usd));
  return told;
}

const char* tell(block_kind kind) {
  switch (kind) {
    case block_kind::text: return "text";
    case block_kind::thinking: return "thinking";
    case block_kind::redacted_thinking: return "redacted_thinking";
    case block_kind::tool_call: return "tool_call";
    case block_kind::activity: return "activity";
    case block_kind::search: return "search";
    case block_kind::found: return "found";
  }
  return "?";
}

const char* tell(stop_reason reason) {
  switch (reason) {
    case stop_reason::end_turn: return "end_turn";
    case stop_reason::max_tokens: return "max_tokens";
    case stop_reason::stop_sequence: return "stop_sequence";
    case stop_reason::tool_use: return "tool_use";
    case stop_reason::refusal: return "refusal";
    case stop_reason::turn_limit: return "turn_limit";
  }
  return "?";
}

std::string tell(const api_error& error) {
  std::string told = std::to_string(http_status(error.kind)) + " " + quoted(error.message);
  if (!error.code.empty()) told += " code=" + error.code;
  if (error.retry_after) {
    told += " retry_after=" + std::to_string(error.retry_after->count()) + "ms";
  }
  if (error.retry_is_futile) told += " futile";
  return told;
}

std::string tell(const event& what) {
  return std::visit(
      overloaded{
          [](const turn_started& e) { return "turn_started " + e.model + " " + tell(e.usage); },
          [](const block_started& e) {
            auto told = "block_started " + std::to_string(e.index) + " " + tell(e.kind);
            if (!e.id.empty() || !e.name.empty()) told += " id=" + e.id + " name=" + e.name;
            return told;
          },
          [](const block_delta& e) {
            return "  delta " + std::to_string(e.index) + " " + quoted(e.text);
          },
          [](const block_stopped& e) {
            auto told = "block_stopped " + std::to_string(e.index);
            if (!e.signature.empty()) told += " signature=" + e.signature;
            return told;
          },
          [](const attempt_broken& e) { return "attempt_broken " + std::to_string(e.index); },
          [](const turn_stopped& e) {
            auto told = std::string("turn_stopped ") + tell(e.reason);
            if (!e.stop_sequence.empty()) told += " " + quoted(e.stop_sequence);
            return told + " " + tell(e.usage);
          },
          [](const turn_failed& e) { return "turn_failed " + tell(e.error); },
      },
      what);
}

const reply_context context{"golden", 1'795'370'974};

std::string stream_of(const events& told) {
  openai_chat::reply_style style;
  style.include_usage = true;
  openai_chat::chat_reply writer(context, style);
  std::string out;
  for (const auto& what : told) writer.write(0, what, out);
  return out;
}

std::string error_of(const api_error& error) {
  return "HTTP " + std::to_string(http_status(error.kind)) + "\n" +
         openai_chat::render_error(error) + "\n";
}

/// What a client that streams gets: a failure before anything else is an HTTP status.
std::string tell_stream(const events& told) {
  const auto* failed = std::get_if<turn_failed>(&told.at(0));
  return failed != nullptr ? error_of(failed->error) : stream_of(told);
}

std::string tell_whole(const events& told) {
  const openai_chat::chat_reply writer(context, openai_chat::reply_style());
  try {
    collector answer;
    for (const auto& what : told) answer.add(what);
    return writer.render({answer.result()}) + "\n";
  } catch (const api_error& error) {
    return error_of(error);
  }
}

std::string tell(const transcript& one) {
  std::string told;
  double cost = 0;
  for (std::size_t i = 0; i < one.turns.size(); ++i) {
    const auto turn = decode(one, one.turns[i], cost);
    cost = turn.cost;
    told += "==== " + one.name + ", turn " + std::to_string(i + 1) + " of " +
            std::to_string(one.turns.size()) + "\n---- events\n";
    for (const auto& what : turn.told) told += tell(what) + "\n";
    if (turn.cut) told += "(cut: the process must not live on)\n";
    told += "---- stream\n" + tell_stream(turn.told);
    told += "---- whole\n" + tell_whole(turn.told);
  }
  return told;
}

files::path expected_path(const std::string& name) {
  return folder() / "expected" / (name + ".txt");
}

bool updating() { return std::getenv("UPDATE_GOLDEN") != nullptr; }

/// The first line in which two texts differ, for a short message.
std::string first_difference(const std::string& got, const std::string& expected) {
  std::istringstream a(got);
  std::istringstream b(expected);
  std::string x;
  std::string y;
  for (int number = 1;; ++number) {
    const bool more_a = static_cast<bool>(std::getline(a, x));
    const bool more_b = static_cast<bool>(std::getline(b, y));
    if (!more_a && !more_b) return "nowhere";
    if (more_a && more_b && x == y) continue;
    return "line " + std::to_string(number) + "\n     got: " + (more_a ? x : "(end)") +
           "\nexpected: " + (more_b ? y : "(end)");
  }
}

/// How a turn ends for a client, whatever the version of the CLI.
struct ending {
  std::string text;           ///< all that a client may read
  std::string finish_reason;  ///< empty: the turn fails
  int status = 200;           ///< of the failure
  std::string message = {};   ///< part of the failure's
};

/// By scenario, for each of its turns.
const std::map<std::string, std::vector<ending>>& endings() {
  const std::string hello = "Hello from the loopback API.";
  const std::string four = "One two three four.";
  const std::string half = "One two th";
  static const std::map<std::string, std::vector<ending>> all = {
      {"plain", {{hello, "stop"}}},
      {"utf8",
       {{"Grüße, 世界! 👩‍👩‍👧‍👦 🇨🇭 é ¡olé! \xE2\x80\xA8 – "
         "𝒯𝓊𝓇𝓃 "
         "“end”",
         "stop"}}},
      {"thinking", {{"I thought about it.", "stop"}}},
      {"stop_sequence", {{"Before the stop", "stop"}}},
      {"max_tokens", {{"This answer is cut", "length"}}},
      {"refusal", {{"I cannot", "content_filter"}}},
      {"empty", {{"", "stop"}}},
      {"empty_no_blocks", {{"", "stop"}}},
      {"error_400", {{"", "", 400, "messages.0.content: loopback says this is bad"}}},
      {"error_401", {{"", "", 401, "Invalid API key"}}},
      {"error_403", {{"", "", 403, "loopback forbids this"}}},
      {"error_404", {{"", "", 404, "claude-sonnet-4-5-20250929"}}},
      {"error_413", {{"", "", 413, "Request too large"}}},
      {"error_429", {{"", "", 429, "loopback rate limit reached"}}},
      {"error_500", {{"", "", 500, "Internal server error"}}},
      {"error_529", {{"", "", 503, "Overloaded"}}},
      {"error_event", {{"Hello from the", "", 503, "Overloaded"}}},
      {"error_event_recovered", {{hello, "stop"}}},
      {"drop_before", {{"", "", 502, "(ECONNRESET)"}}},
      {"drop_before_recovered", {{four, "stop"}}},
      {"drop_after_start", {{four, "stop"}}},
      {"drop_same", {{four, "stop"}}},
      {"drop_other", {{half, "", 502, "differs"}}},
      {"drop_nostream", {{four, "stop"}}},
      {"drop_always", {{half, "", 502, "(ECONNRESET)"}}},
      {"not_logged_in", {{"", "", 503, "claude auth login"}}},
      {"two_turns", {{hello, "stop"}, {hello, "stop"}}},
      {"replay", {{"", "stop"}}},  // its text depends on the version: what the API was sent
      {"interrupted", {{"Hello from the", "", 502, ""}}},
      {"tool_use", {{"Let me look.", "tool_calls"}, {hello, "stop"}}},
      {"tool_parallel", {{"", "tool_calls"}, {hello, "stop"}}},
      {"tool_thinking", {{"Let me look.", "tool_calls"}, {hello, "stop"}}},
      {"schema_ok", {{R"({"city":"Bern"})", "stop"}}},
      {"schema_rejected", {{R"({"town":"Bern"})", "", 502, "does not follow the schema"}}},
      {"schema_tools", {{"", "tool_calls"}, {R"({"city":"Bern"})", "stop"}}},
      {"agent", {{"Running.\n\nReading.\n\n" + hello, "stop"}}},
      {"agent_turn_limit", {{"Running.\n\n[Reached maximum number of turns (1)]", "length"}}}};
  return all;
}

}  // namespace

TEST_CASE("golden: each transcript gives the events and bytes of its expected file") {
  REQUIRE(transcripts().size() >= 30 * versions());
  files::create_directories(folder() / "expected");
  for (const auto& one : transcripts()) {
    const auto told = tell(one);
    if (updating()) std::ofstream(expected_path(one.name), std::ios::binary) << told;
    const auto expected = read_file(expected_path(one.name));
    CHECK_MESSAGE(told == expected, one.name << ": " << first_difference(told, expected));
  }
}

TEST_CASE("golden: every expected file has its transcript") {
  std::set<std::string> names;
  for (const auto& one : transcripts()) names.insert(one.name + ".txt");
  for (const auto& entry : files::directory_iterator(folder() / "expected")) {
    CAPTURE(entry.path().filename().string());
    CHECK(names.count(entry.path().filename().string()) == 1);
  }
}

TEST_CASE("golden: every scenario ends for the client as its description says, in all versions") {
  std::set<std::string> seen;
  for (const auto& one : transcripts()) {
    CAPTURE(one.name);
    seen.insert(one.scenario);
    REQUIRE(endings().count(one.scenario) == 1);
    const auto& ends = endings().at(one.scenario);
    REQUIRE(one.turns.size() == ends.size());
    for (std::size_t i = 0; i < ends.size(); ++i) {
      const auto& end = ends[i];
      const auto told = decode(one, one.turns[i]).told;
      REQUIRE(test::grammar_problem(told) == "");
      if (one.scenario != "replay") CHECK(test::text_of(told) == end.text);
      const auto failure = test::failure_of(told);
      REQUIRE(failure.has_value() == end.finish_reason.empty());
      if (failure) {
        CHECK(http_status(failure->kind) == end.status);
        CHECK_MESSAGE(failure->message.find(end.message) != std::string::npos, failure->message);
      } else {
        CHECK(openai_chat::finish_reason(test::end_of(told)->reason) == end.finish_reason);
      }
    }
  }
  CHECK(seen.size() == endings().size());
}

TEST_CASE("golden: a whole answer is the text of the CLI's own result, and its tokens and cost") {
  // Where the CLI counts broken attempts too, or makes a second answer, its result is not ours.
  const std::set<std::string> other = {"drop_after_start", "drop_same", "drop_nostream",
                                       "error_event_recovered"};
  std::size_t compared = 0;
  for (const auto& one : transcripts()) {
    for (const auto& lines : one.turns) {
      const auto turn = decode(one, lines);
      const auto end = test::end_of(turn.told);
      const auto& result = lines.back();
      const bool last = one.turns.size() == 1 || one.scenario == "two_turns";
      if (!end || turn.cut || !last) continue;
      CAPTURE(one.name);
      auto said = test::text_of(turn.told);
      const auto own = string_of(result, "result");
      // Of an agent the CLI's result is the last of its texts.
      if (one.scenario == "agent") said.erase(0, said.size() - std::min(said.size(), own.size()));
      CHECK(said == own);
      CHECK(end->usage.cost_usd.has_value());
      if (other.count(one.scenario) != 0) continue;
      const auto& usage = member_of(result, "usage");
      CHECK(end->usage.input == integer_of(usage, "input_tokens"));
      CHECK(end->usage.output == integer_of(usage, "output_tokens"));
      CHECK(end->usage.cache_read == integer_of(usage, "cache_read_input_tokens"));
      CHECK(end->usage.cache_write == integer_of(usage, "cache_creation_input_tokens"));
      ++compared;
    }
  }
  CHECK(compared >= 6 * versions());
}

TEST_CASE("golden: an answer after broken attempts counts one answer's tokens") {
  for (const auto& one : transcripts()) {
    const bool broken = one.scenario == "drop_after_start" || one.scenario == "drop_same" ||
                        one.scenario == "drop_nostream" || one.scenario == "error_event_recovered";
    if (!broken) continue;
    CAPTURE(one.name);
    const auto end = test::end_of(decode(one, one.turns.at(0)).told);
    REQUIRE(end);
    CHECK(end->usage.input == 11);
    CHECK(end->usage.output == 7);
  }
}

TEST_CASE("golden: no answer says what the CLI says of itself") {
  for (const auto& one : transcripts()) {
    if (one.scenario == "replay") continue;
    for (const auto& lines : one.turns) {
      const auto told = decode(one, lines).told;
      CAPTURE(one.name);
      const auto failure = test::failure_of(told);
      auto said = test::text_of(told) + "\n" + (failure ? failure->message : "");
      for (const std::string own :
           {"API Error", "<synthetic>", "status.claude.com", "127.0.0.1", "/login",
            "Request rejected", "{\"type\"", "server-side issue", "--model", "[Request interrupted",
            "[Your previous response", "ANTHROPIC_BASE_URL", "Fix external", "[ede_diagnostic"}) {
        CAPTURE(own);
        CHECK(said.find(own) == std::string::npos);
      }
      if (failure) CHECK_FALSE(failure->message.empty());
    }
  }
}

TEST_CASE("golden: byte by byte, and in any pieces, the lines give the same events") {
  for (const auto& one : transcripts()) {
    for (const std::size_t chunk : {1U, 2U, 3U, 7U, 64U, 1000U, 4096U}) {
      const auto turns = turns_of(parse_lines(one.bytes, chunk));
      CAPTURE(one.name);
      CAPTURE(chunk);
      REQUIRE(turns == one.turns);
    }
  }
}

TEST_CASE("golden: a stream adds up to the whole answer") {
  for (const auto& one : transcripts()) {
    for (const auto& lines : one.turns) {
      const auto told = decode(one, lines).told;
      CAPTURE(one.name);
      const auto answer = test::read_chat_stream(stream_of(told));
      if (std::holds_alternative<turn_failed>(told.at(0))) continue;
      CHECK(answer.problem == "");
      CHECK(answer.content == test::text_of(told));
      if (!test::end_of(told)) continue;
      const auto whole = nlohmann::json::parse(tell_whole(told));
      const auto& content = whole["choices"][0]["message"]["content"];
      CHECK(answer.content == (content.is_null() ? "" : content));
      CHECK(answer.finish_reason == whole["choices"][0]["finish_reason"]);
      CHECK(answer.usage == whole["usage"]);
      CHECK(answer.model == "claude-sonnet-4-5-20250929");
    }
  }
}

TEST_CASE("golden: cut after any line, the turn fails and keeps the grammar") {
  for (const auto& one : transcripts()) {
    for (const auto& lines : one.turns) {
      const auto whole = decode(one, lines).told;
      for (std::size_t count = 0; count <= lines.size(); ++count) {
        turn_decoder decoder(0, shape_of(one.scenario));
        events told;
        for (std::size_t i = 0; i < count; ++i) decoder.decode(lines[i], told);
        REQUIRE(std::equal(told.begin(), told.end(), whole.begin(),
                           [](const event& a, const event& b) { return tell(a) == tell(b); }));
        const bool finished = decoder.finished();
        decoder.fail(api_error(error_kind::bad_gateway, "gone"), told);
        CAPTURE(one.name);
        CAPTURE(count);
        REQUIRE(decoder.finished());
        REQUIRE(test::grammar_problem(told) == "");
        const auto failure = test::failure_of(told);
        if (!finished) REQUIRE((failure && failure->message == "gone"));
      }
    }
  }
}

TEST_CASE("golden: lines dropped, doubled and swapped at random never break the grammar") {
  CAPTURE(test::seed());
  test::generator random(40);
  for (const auto& one : transcripts()) {
    for (int i = 0; i < 150; ++i) {
      auto lines = random.pick(one.turns);
      for (std::size_t n = random.between(1, 4); n > 0 && !lines.empty(); --n) {
        const auto at = random.below(lines.size());
        const auto other = random.below(lines.size());
        const auto place = [&](std::size_t k) {
          return lines.begin() + static_cast<std::ptrdiff_t>(k);
        };
        switch (random.below(4)) {
          case 0: lines.erase(place(at)); break;
          case 1: lines.insert(place(at), json(lines[at])); break;
          case 2: std::swap(lines[at], lines[other]); break;
          default: lines.insert(place(at), json(lines[other])); break;
        }
      }
      turn_decoder decoder(0, shape_of(one.scenario));
      events told;
      std::string order;
      for (const auto& line : lines) {
        order += string_of(line, "type") + "/" + string_of(line, "subtype") + "/" +
                 string_of(member_of(line, "event"), "type") + " ";
        decoder.decode(line, told);
      }
      decoder.fail(api_error(error_kind::bad_gateway, "gone"), told);
      CAPTURE(one.name);
      CAPTURE(order);
      REQUIRE(test::grammar_problem(told) == "");
      if (std::holds_alternative<turn_failed>(told.at(0))) continue;
      REQUIRE(test::read_chat_stream(stream_of(told)).problem == "");
    }
  }
}

TEST_CASE("golden: lines of any two transcripts mixed never break the grammar") {
  CAPTURE(test::seed());
  test::generator random(41);
  for (int i = 0; i < 4'000; ++i) {
    const auto& first = transcripts()[random.below(transcripts().size())];
    const auto& second = transcripts()[random.below(transcripts().size())];
    auto lines = random.pick(first.turns);
    const auto more = random.pick(second.turns);
    lines.resize(random.below(lines.size() + 1));
    lines.insert(lines.end(), more.begin(), more.end());
    turn_decoder decoder(0, shape_of(first.scenario));
    events told;
    for (const auto& line : lines) decoder.decode(line, told);
    decoder.fail(api_error(error_kind::bad_gateway, "gone"), told);
    CAPTURE(first.name);
    CAPTURE(second.name);
    REQUIRE(test::grammar_problem(told) == "");
  }
}

TEST_CASE("golden: what the CLI answers to initialize tells the login and the models") {
  const std::map<std::string, std::set<std::string>> models = {
      {"2.1.120", {"sonnet[1m]", "opus[1m]", "haiku", "claude-sonnet-4-5-20250929"}},
      {"2.1.197", {"claude-sonnet-4-5-20250929"}},
      {"2.1.330", {"opus", "fable", "sonnet", "haiku", "claude-opus-5-5"}}};
  for (const auto& each : models) {
    const auto& version = each.first;
    const auto& some = each.second;
    CAPTURE(version);
    const auto answer = json::parse(read_file(pinned() / ("initialize." + version + ".json")));
    cli_facts facts;
    read_initialize_response(member_of(member_of(answer, "response"), "response"), facts);
    CHECK(facts.logged_in == true);
    for (const auto& id : some) {
      CAPTURE(id);
      CHECK(std::count(facts.models.begin(), facts.models.end(), id) >= 1);
    }
    CHECK(std::count(facts.models.begin(), facts.models.end(), "default") == 0);
    for (const auto& entry : make_catalog(options(), facts.models)) {
      const json id = entry.id;
      CHECK_NOTHROW(parse_model(reader(id, "model")));
    }
  }
}

TEST_CASE("golden: the costs of a process's turns add up to what the CLI says of all") {
  for (const auto& one : transcripts()) {
    if (one.scenario != "two_turns") continue;
    double sum = 0;
    double cost = 0;
    for (const auto& lines : one.turns) {
      const auto turn = decode(one, lines, cost);
      cost = turn.cost;
      sum += test::end_of(turn.told).value().usage.cost_usd.value();
    }
    CAPTURE(one.name);
    CHECK(sum ==
          doctest::Approx(member_of(one.turns.back().back(), "total_cost_usd").get<double>()));
    CHECK(sum > 0);
  }
}
