// Stands in for the `claude` command line: speaks the lines that the real one (2.1.330) speaks, and
// misbehaves by name. `stand-in --help` lists the names; the table is at the end of this file.
//
// - What a turn answers is told by directives in the live user text: `[[text n=3]] [[split]]`.
// - What a process does before its first turn is told by lines of the file PROGRAM.conf, where
//   PROGRAM is the path by which it was started (a link or copy of this program).
// - When the file PROGRAM.journal exists, every process appends `PID start {json}` and `PID end`.
//   With `journal_requests` in PROGRAM.conf also `PID asked {json}` for each turn, and `PID rewind`.
#include "stand_in_io.hpp"
#include "stand_in_lines.hpp"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

// ---- what the process holds ---------------------------------------------------------------------

struct interrupted {};  // thrown inside a turn

input in;
output out;
std::map<string, directive> configuration;

json arguments = json::array();
json settings = json::object();  // of apply_flag_settings, merged
json told = json::object();      // what the other control requests asked for
json history = json::array();    // every message so far, in the order of arrival
std::vector<string> uuids;       // of these; empty where the client gave none
std::deque<json> lines_to_do;    // user and assistant lines
std::map<string, json> answers;  // to our control requests, by id
bool turn_runs = false;
bool interrupt_asked = false;
bool last_turn_failed = false;
int replayed = 0, unacknowledged = 0, requests_sent = 0;

bool configured(const char* name) { return configuration.count(name) != 0; }

int configured_number(const char* name, const char* key, int fallback) {
  return configured(name) ? configuration[name].number(key, fallback) : 0;
}

/// A fault that begins when so many are done.
bool due(const char* name, int done) {
  return configured(name) && done >= configuration[name].number("after", 0);
}

void remember(const json& message, const string& uuid = "") {
  history.push_back(message);
  uuids.push_back(uuid);
}

void remember_answer(const string& text) { remember({{"role", "assistant"}, {"content", text}}); }

string text_of(const json& content) {
  if (content.is_string()) return content;
  string text;
  for (const auto& block : content) {
    if (block.is_object()) text += block.value("text", "");
  }
  return text;
}

string joined(const std::vector<string>& pieces) {
  string text;
  for (const auto& piece : pieces) text += piece;
  return text;
}

/// The words such as `secret-17` in a text, in their order.
std::vector<string> secrets_in(const string& text) {
  std::vector<string> secrets;
  for (size_t at = 0; (at = text.find("secret-", at)) != string::npos;) {
    const auto end = std::min(text.find_first_not_of("0123456789", at + 7), text.size());
    secrets.push_back(text.substr(at, end - at));
    at = end;
  }
  return secrets;
}

void write_to_journal(const string& what) {
  if (!configured("journal_requests")) return;
  write_all(journal, std::to_string(::getpid()) + " " + what + "\n");
}

/// What a Messages API would be sent: who checks it needs the secrets alone.
void journal_turn() {
  auto secrets = secrets_in(told.value("initialize", json()).dump());
  for (const auto& message : history) {
    for (auto& secret : secrets_in(message.dump())) secrets.push_back(std::move(secret));
  }
  write_to_journal(
      "asked " +
      json{{"turn", lines::turns}, {"messages", history.size()}, {"secrets", secrets}}.dump());
}

// ---- control requests ---------------------------------------------------------------------------

string request_client(const json& message) {
  const auto id = "stand-in-" + std::to_string(++requests_sent);
  out.line(lines::mcp_request(id, message));
  return id;
}

void initialize(const json& id, const json& request) {
  if (configured("crash_in_initialize")) leave(1);
  if (configured("no_answer_to_initialize")) return;
  if (configured("error_in_initialize")) {
    return out.line(lines::control_error(id, "initialize failed as told", "internal_error"));
  }
  if (!told.contains("initialize")) told["initialize"] = request;  // a second one changes nothing
  told["initialized"] = told.value("initialized", 0) + 1;
  lines::serves_tools = request.contains("sdkMcpServers");
  if (lines::serves_tools) {
    const json about{{"name", "claude-code"}, {"version", lines::version}};
    const json params{
        {"protocolVersion", "2025-11-25"}, {"capabilities", json::object()}, {"clientInfo", about}};
    request_client({{"method", "initialize"}, {"params", params}, {"jsonrpc", "2.0"}, {"id", 0}});
  }
  out.line(lines::initialize_success(id));
  if (lines::serves_tools) {
    request_client({{"jsonrpc", "2.0"}, {"method", "notifications/initialized"}});
    request_client({{"method", "tools/list"}, {"jsonrpc", "2.0"}, {"id", 1}});
  }
}

void refuse_request(const json& id, const string& subtype) {
  const auto error = "Unsupported control request subtype: " + subtype;
  out.line(lines::control_error(id, error, "unsupported_request"));
}

bool brings_results(const json& message) {
  return message["content"].is_array() &&
         std::any_of(message["content"].begin(), message["content"].end(),
                     [](const json& block) { return block.value("type", "") == "tool_result"; });
}

/// The place of the last message that the client has named and that brings no results.
size_t last_question() {
  auto at = history.size();
  while (at > 0 && (uuids[at - 1].empty() || brings_results(history[at - 1]))) --at;
  return at - 1;
}

/// Takes the user's last message back, and all after it. The real one compares 24 characters.
json take_back(const string& target) {
  const auto refused = [](const char* reason) {
    return json{{"rewound", false}, {"reason", reason}};
  };
  if (turn_runs || !lines_to_do.empty()) return refused("commands_queued");
  const auto last = last_question();
  for (size_t at = 0; at < history.size(); ++at) {
    if (uuids[at].empty() || uuids[at].substr(0, 24) != target.substr(0, 24)) continue;
    if (brings_results(history[at])) return refused("target_splits_tool_call");
    if (at != last) break;
    const bool answered = std::any_of(history.begin(), history.begin() + static_cast<long>(at),
                                      [](const json& past) { return past["role"] == "assistant"; });
    if (!answered && configured("no_rewind_to_start")) {
      return {{"rewound", false}, {"error", "no preceding assistant"}};
    }
    const json answer{{"rewound", true},
                      {"targetMessageUuid", uuids[at]},
                      {"prefillText", text_of(history[at]["content"])},
                      {"precedingAssistantUuid", answered ? json(lines::uuid()) : json()}};
    history.erase(history.begin() + static_cast<std::ptrdiff_t>(at), history.end());
    uuids.resize(at);
    told["rewound"] = told.value("rewound", 0) + 1;
    return answer;
  }
  return refused("stale_target");
}

void rewind(const json& id, const json& request) {
  const auto done = told.value("rewound", 0);
  told["rewinds_asked"] = told.value("rewinds_asked", 0) + 1;
  const auto every = std::max(1, configured_number("slow_rewind", "every", 1));
  if (configured("slow_rewind") && (::getpid() + told["rewinds_asked"].get<int>()) % every == 0) {
    write_to_journal("rewind");
    sleep_ms(configured_number("slow_rewind", "ms", 100));
  }
  if (due("crash_in_rewind", done)) leave(1);
  if (due("no_answer_to_rewind", done)) return;
  if (configured("unsupported_rewind")) return refuse_request(id, "rewind_conversation");
  if (due("refuses_rewind", done)) {
    return out.line(lines::control_success(id, {{"rewound", false}, {"reason", "stale_target"}}));
  }
  if (due("talks_in_rewind", done)) out.line(lines::message_start());
  out.line(lines::control_success(id, take_back(request.value("target_message_uuid", ""))));
}

void take_control_request(const json& line) {
  const auto id = line.value("request_id", json());
  const auto request = line.value("request", json::object());
  const string subtype = request.value("subtype", "");
  sleep_ms(configured_number("slow_control", "ms", 100));
  if (subtype == "initialize") return initialize(id, request);
  if (subtype == "rewind_conversation") return rewind(id, request);
  json response;
  if (subtype == "apply_flag_settings") {
    if (configured("no_answer_to_settings")) return;
    settings.merge_patch(request.value("settings", json::object()));
    told["settings_told"] = told.value("settings_told", 0) + 1;
  } else if (subtype == "set_max_thinking_tokens") {
    told["max_thinking_tokens"] = request["max_thinking_tokens"];
  } else if (subtype == "set_permission_mode") {
    told["permission_mode"] = request["mode"];
    response = {{"mode", request["mode"]}};
  } else if (subtype == "get_settings") {  // what it knows and cannot be is dropped, like 2.1.330
    response["effective"] = settings;
    const string ttl = settings.value("promptCacheTtl", "");
    if (!ttl.empty() && ttl != "1h" && ttl != "5m") response["effective"].erase("promptCacheTtl");
  } else if (subtype == "set_model") {
    lines::model = request.value("model", lines::model);
  } else if (subtype == "interrupt") {
    interrupt_asked = true;
    response = {{"still_queued", json::array()}};
    for (const char* step : {"rewind", "rewind-0", "rewind-1", "rewind-2"}) {
      if (!configured("confirms_unasked")) break;
      out.line(lines::control_success(step, {{"rewound", true}}));
    }
  } else {
    return refuse_request(id, subtype);
  }
  out.line(lines::control_success(id, response));
}

/// One line of stdin: control lines take effect at once, also within a turn; the others wait.
void take_line(const string& text) {
  if (text.empty()) return;
  const auto line = json::parse(text, nullptr, false);
  if (line.is_discarded()) {
    std::fprintf(stderr,
                 "Error parsing streaming input line (type=unknown, %zu chars): SyntaxError\n",
                 text.size());
    leave(1);
  }
  const string type = line.is_object() ? line.value("type", "") : "";
  if (type == "control_request") take_control_request(line);
  if (type == "control_response") {
    const auto response = line.value("response", json::object());
    answers[response.value("request_id", "")] = response;
  }
  if (type == "user" || type == "assistant") lines_to_do.push_back(line);
}

/// Waits, and serves control requests meanwhile. Throws when the turn was interrupted.
void pause(int ms) {
  using clock = std::chrono::steady_clock;
  const auto deadline = clock::now() + std::chrono::milliseconds(ms);
  if (ms > 0) out.flush();
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - clock::now());
    if (const auto line = in.next_line(std::max(0, static_cast<int>(left.count()))))
      take_line(*line);
    if (interrupt_asked) throw interrupted{};
    if (clock::now() >= deadline) return;
  }
}

[[noreturn]] void hang() {
  for (;;) pause(1000);  // bounded by the alarm in main
}

// ---- misbehaviour beside an answer --------------------------------------------------------------

void split(const directive&) { out.pace(pacing::byte); }
void burst(const directive&) { out.pace(pacing::burst); }
void ignore_sigterm(const directive&) { std::signal(SIGTERM, SIG_IGN); }
void ignore_eof(const directive&) { in.ignore_eof = true; }

void flood_stderr(const directive& wish) {
  const string line = string(79, 'e') + "\n";
  for (int written = 0; written < wish.number("bytes", 1 << 20); written += 80) {
    write_all(STDERR_FILENO, line);
  }
}

void leave_grandchild(const directive& wish) {
  if (::fork() != 0) return;
  std::signal(SIGTERM, SIG_IGN);
  sleep_ms(wish.number("ms", 60000));
  ::_exit(0);
}

void hold_memory(const directive& wish) {
  const auto size = static_cast<size_t>(wish.number("mib", 100)) << 20;
  static std::vector<std::vector<char>> held;
  held.emplace_back(size, 'm');
}

// ---- one message --------------------------------------------------------------------------------

using after_delta = std::function<void(int)>;

/// The deltas of a text.
std::vector<string> pieces_of(const directive& wish) {
  std::vector<string> pieces;
  const auto say = wish.word("say", "");
  for (size_t at = 0; at < say.size();) {
    const auto end = std::min(say.find(' ', at + 1), say.size());
    pieces.push_back(say.substr(at, end - at));
    at = end;
  }
  if (!pieces.empty()) return pieces;
  const auto size = static_cast<size_t>(wish.number("size", 0));
  for (int i = 0; i < wish.number("n", 3); ++i) {
    pieces.push_back((i == 0 ? "w" : " w") + std::to_string(i));
    if (pieces.back().size() < size) pieces.back().resize(size, 'x');
  }
  return pieces;
}

void write_text(int index, const std::vector<string>& pieces, int delay_ms = 0,
                const after_delta& between = {}) {
  out.line(lines::text_block_start(index));
  for (size_t i = 0; i < pieces.size(); ++i) {
    pause(i == 0 ? 0 : delay_ms);
    out.line(lines::text_delta(index, pieces[i]));
    if (between) between(static_cast<int>(i + 1));
  }
  out.line(lines::assistant({{"type", "text"}, {"text", joined(pieces)}}));
  out.line(lines::block_stop(index));
}

void stop_message(const string& reason, const json& stop_sequence = nullptr) {
  out.line(lines::message_delta(reason, stop_sequence));
  out.line(lines::message_stop());
}

/// A message with one text, without the result that ends the turn.
string write_message(const directive& wish, const string& reason, const after_delta& between = {}) {
  const auto pieces = pieces_of(wish);
  pause(wish.number("first_ms", 0));
  out.line(lines::message_start());
  if (between) between(0);
  write_text(0, pieces, wish.number("delay_ms", 0), between);
  stop_message(reason, reason == "stop_sequence" ? json(wish.word("value", "END")) : json());
  remember_answer(joined(pieces));
  return joined(pieces);
}

void write_result(const string& text, const string& stop_reason = "end_turn") {
  out.line(lines::result(text, stop_reason));
}

/// A whole turn of one text.
void answer_whole(const string& text) {
  out.line(lines::message_start());
  write_text(0, {text});
  stop_message("end_turn");
  remember_answer(text);
  write_result(text);
}

/// The beginning of a message that will not be finished.
void write_beginning(const std::vector<string>& pieces) {
  out.line(lines::message_start());
  out.line(lines::text_block_start(0));
  for (const auto& piece : pieces) out.line(lines::text_delta(0, piece));
}

/// 2.1.330 closes what it will not go on with, without a message_delta.
void close_abandoned_message() {
  out.line(lines::block_stop(0));
  out.line(lines::abandoned_message_stop());
}

// ---- turns --------------------------------------------------------------------------------------

void answer_text(const directive& wish) { write_result(write_message(wish, "end_turn")); }

void answer_wakes(const directive& wish) {
  answer_text(wish);
  pause(wish.number("ms", 200));
  answer_text(wish);
}

void answer_stop_sequence(const directive& wish) {
  write_result(write_message(wish, "stop_sequence"), "stop_sequence");
}

/// What the MCP configuration holds, which may be a pipe: it can be read once.
string mcp_config() {
  static const string content = [] {
    const auto flag = std::find(arguments.begin(), arguments.end(), "--mcp-config");
    std::ostringstream bytes;
    if (flag != arguments.end()) bytes << std::ifstream(*(flag + 1)).rdbuf();
    return bytes.str();
  }();
  return content;
}

void answer_echo(const directive&) {
  json values = json::object();
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const string line(*entry);
    if (line.rfind("CLAUDE_CODE_", 0) == 0 || line.rfind("MAX_", 0) == 0) {
      values[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
    }
  }
  char directory[4096] = "";
  const json echo{{"pid", ::getpid()},
                  {"turn", lines::turns},
                  {"cwd", ::getcwd(directory, sizeof directory)},
                  {"argv", arguments},
                  {"environment", environment_names()},
                  {"values", values},
                  {"settings", settings},
                  {"mcp_config", mcp_config()},
                  {"told", told},
                  {"unacknowledged", unacknowledged},
                  {"history", history}};
  answer_whole(echo.dump(-1, ' ', false, json::error_handler_t::replace));
}

/// Small enough for every turn of a long chat. Secrets are words such as `secret-17`.
void answer_who(const directive&) {
  auto secrets = secrets_in(told.dump() + history.dump());
  std::sort(secrets.begin(), secrets.end());
  secrets.erase(std::unique(secrets.begin(), secrets.end()), secrets.end());
  answer_whole(json{
      {"pid", ::getpid()},
      {"turn", lines::turns},
      {"messages", history.size()},
      {"secrets",
       secrets}}.dump());
}

void answer_thinking(const directive& wish) {
  const string thought = "let me think ";
  json block{{"type", "thinking"}, {"thinking", ""}, {"signature", ""}};
  out.line(lines::with_thinking(lines::message_start()));
  out.line(lines::with_thinking(lines::block_start(0, block)));
  for (int i = 0; i < wish.number("n", 2); ++i) {
    const json count{{"estimated_tokens", 3 * (i + 1)}, {"estimated_tokens_delta", 3}};
    out.line(lines::system("thinking_tokens", count));
    out.line(lines::with_thinking(lines::block_delta(0, "thinking_delta", "thinking", thought)));
    block["thinking"] = block["thinking"].get<string>() + thought;
  }
  out.line(lines::block_delta(0, "signature_delta", "signature", "c2ln"));
  block["signature"] = "c2ln";
  out.line(lines::with_thinking(lines::assistant(block)));
  out.line(lines::block_stop(0));
  write_text(1, pieces_of(wish), wish.number("delay_ms", 0));
  stop_message("end_turn");
  remember_answer(joined(pieces_of(wish)));
  write_result(joined(pieces_of(wish)));
}

/// The CLI by itself asks the model to go on.
void go_on(const directive& wish) {
  out.line(lines::status());
  pause(wish.number("go_on_ms", 5));
  answer_text({"text", {{"say", "more text that nobody asked for"}}});
}

void answer_max_tokens(const directive& wish) {
  write_message(wish, "max_tokens");
  out.line(lines::user("Output token limit hit. Resume directly.", {{"isSynthetic", true}}));
  go_on(wish);
}

void answer_refusal(const directive& wish) {
  write_message(wish, "refusal");
  out.line(lines::system("informational", {{"content", "safeguards stopped the response above"},
                                           {"level", "notice"}}));
  out.line(lines::user("Your response above was stopped by a safety classifier.",
                       {{"isSynthetic", true}, {"refused_message_id", lines::message_id()}}));
  go_on(wish);
}

void answer_rate_limit(const directive& wish) {
  const auto status = wish.word("status", "allowed_warning");
  out.line(lines::rate_limit_event({{"status", status},
                                    {"resetsAt", 1'795'380'000},
                                    {"rateLimitType", wish.word("type", "five_hour")},
                                    {"utilization", 0.91},
                                    {"isUsingOverage", false}}));
  answer_text(wish);
}

// ---- turns that fail ----------------------------------------------------------------------------

struct api_failure {
  int status;
  const char *error, *type, *before, *after;
};

const api_failure api_failures[] = {
    {400, "unknown", "invalid_request_error", "API Error: 400 ", ""},
    {401, "authentication_failed", "authentication_error",
     "Failed to authenticate. API Error: 401 ", ""},
    {403, "authentication_failed", "permission_error", "Failed to authenticate. API Error: 403 ",
     ""},
    {404, "model_not_found", "not_found_error", "There's an issue with the selected model (", ")."},
    {413, "unknown", "request_too_large", "Request too large ", ""},
    {429, "rate_limit", "rate_limit_error", "API Error: Request rejected (429) · ", ""},
    {529, "overloaded", "overloaded_error", "API Error: 529 ", ". This is a server-side issue."},
    {500, "server_error", "api_error", "API Error: 500 ", ". This is a server-side issue."},
};

void write_failure(const string& text, const json& assistant_more, const json& result_more) {
  out.line(lines::synthetic_assistant(text, assistant_more));
  out.line(lines::failed_result(text, result_more));
  last_turn_failed = true;
}

void answer_api_error(const directive& wish) {
  const auto status = wish.number("status", 500);
  const auto* row = std::find_if(std::begin(api_failures), std::end(api_failures) - 1,
                                 [&](const auto& each) { return each.status == status; });
  if (const auto after = wish.number("after", 0); after > 0) {
    write_beginning(std::vector<string>(static_cast<size_t>(after), "w "));
    close_abandoned_message();
  }
  const auto retries = wish.number("retries", status == 400 || status == 404 ? 0 : 1);
  for (int attempt = 1; attempt <= retries; ++attempt) {
    const auto delay_ms = json::parse(wish.word("delay_ms", "500"));  // older ones say fractions
    out.line(lines::api_retry(attempt, retries, delay_ms, status, row->error));
    pause(wish.number("wait_ms", 0));
  }
  const json more{{"error", row->error},
                  {"request_id", "req_1"},
                  {"is_api_error_message", true},
                  {"api_error_status", status},
                  {"api_error_type", row->type}};
  write_failure(row->before + wish.word("say", "said " + std::to_string(status)) + row->after, more,
                {{"api_error_status", status}, {"api_error_type", row->type}});
}

void answer_not_logged_in(const directive&) {
  write_failure("Not logged in · Please run /login",
                {{"error", "authentication_failed"}, {"is_api_error_message", true}},
                json::object());
}

void answer_error_result(const directive& wish) {
  const auto after = wish.number("after", 0);
  if (after > 0) write_beginning(std::vector<string>(static_cast<size_t>(after), "w "));
  out.line(lines::without(lines::with(lines::result("", nullptr),
                                      {{"is_error", true},
                                       {"subtype", wish.word("subtype", "error_during_execution")},
                                       {"errors", json::array({"the stand-in was told to fail"})}}),
                          {"result"}));
  last_turn_failed = true;
}

void answer_retry_midstream(const directive& wish) {
  const auto how = wish.word("how", "same");
  const std::vector<string> pieces{"Hello", " there", " old", " friend."};
  const std::vector<string> others{"Quite", " another", " text."};
  const auto after = std::min<long>(wish.number("after", 2), 4);
  write_beginning({pieces.begin(), pieces.begin() + after});
  if (wish.number("old", 0) == 0) close_abandoned_message();
  if (how == "assistant_only") {
    pause(wish.number("wait_ms", 0));
    ++lines::messages;
    out.line(lines::assistant({{"type", "text"}, {"text", joined(pieces)}}, "end_turn"));
    return write_result(joined(pieces));
  }
  out.line(lines::api_retry(1, 2, 508, nullptr, "unknown"));
  pause(wish.number("wait_ms", 0));
  out.line(lines::message_start());
  write_text(0, how == "same" ? pieces : others);
  stop_message("end_turn");
  write_result(joined(how == "same" ? pieces : others));
}

/// True when the turn ends before any line of it.
bool ends_unheard(const directive& wish) {
  const bool ends = wish.name == "hang" || wish.name == "crash" || wish.name == "exit_zero";
  return ends && wish.number("after", -1) < 0 && wish.word("at", "") != "stop";
}

/// Answers until so many deltas are out, or to the end but for the result, and then does it.
void answer_until(const directive& wish, const std::function<void()>& then) {
  if (ends_unheard(wish)) then();
  const auto after = wish.number("after", -1);
  write_message({"text", {{"n", std::to_string(std::max(after, 1) + 1)}}}, "end_turn",
                [&](int count) {
                  if (count == after) then();
                });
  then();
}

void answer_hang(const directive& wish) { answer_until(wish, hang); }

void answer_crash(const directive& wish) {
  answer_until(wish, [&] {
    out.flush();
    write_all(STDERR_FILENO, "stand-in: going down as told\n");
    const auto signal = wish.number("signal", 0);
    if (signal == 0) leave(wish.number("code", 1));
    write_end_to_journal();
    std::signal(signal, SIG_DFL);
    ::raise(signal);
  });
}

void answer_exit_zero(const directive& wish) {
  answer_until(wish, [] {
    out.flush();
    leave(0);
  });
}

void answer_huge_line(const directive& wish) {
  const auto size = static_cast<size_t>(wish.number("mib", 1)) << 20;
  if (wish.number("endless", 0) == 0) return answer_whole(string(size, 'h'));
  out.raw(R"({"type":"stream_event","event":{"type":")");
  for (size_t written = 0; written < size; written += 1 << 16) out.raw(string(1 << 16, 'h'));
  hang();
}

string event_lines(std::initializer_list<const char*> events) {
  string text;
  for (const auto* event : events)
    text += R"({"type":"stream_event","event":)" + string(event) + "}\n";
  return text;
}

const std::map<string, string>& malformed_lines() {
  static const std::map<string, string> kinds{
      {"not_json", "this is not JSON {\n"},
      {"not_object", "[1,2]\n\"text\"\n17\nnull\ntrue\n\n"},
      {"missing_fields",
       "{}\n{\"type\":\"stream_event\"}\n{\"type\":\"assistant\"}\n{\"type\":\"system\"}\n"
       "{\"type\":\"control_response\"}\n{\"type\":\"control_request\"}\n" +
           event_lines({"{}", R"({"type":"content_block_delta"})"})},
      {"wrong_types",
       "{\"type\":7}\n{\"type\":\"assistant\",\"message\":\"text\"}\n"
       "{\"type\":\"control_response\",\"response\":1}\n" +
           event_lines({"[]", R"({"type":"content_block_delta","index":"0","delta":"x"})",
                        R"({"type":"message_delta","delta":3,"usage":"much"})"})},
      {"unknown_types",
       "{\"type\":\"from_the_future\",\"x\":1}\n{\"type\":\"system\",\"subtype\":\"news\"}\n" +
           event_lines(
               {R"({"type":"ping"})", R"({"type":"from_the_future"})",
                R"({"type":"content_block_delta","index":0,"delta":{"type":"new_delta"}})"})},
      {"invalid_utf8", event_lines({"{\"type\":\"content_block_delta\",\"index\":0,\"delta\":"
                                    "{\"type\":\"text_delta\",\"text\":\"<\xff\xc3\x28>\"}}"})},
      {"nul", string("{\"type\":\"sys\0tem\"}\n\0\0\n", 22)},
      {"deep", "{\"type\":" + string(200'000, '[') + string(200'000, ']') + "}\n"},
      {"out_of_order",
       event_lines(
           {R"({"type":"content_block_stop","index":7})",
            R"({"type":"content_block_delta","index":5,)"
            R"("delta":{"type":"text_delta","text":"stray"}})",
            R"({"type":"content_block_start","index":-1,"content_block":{"type":"text"}})"})},
      {"cut_off", R"({"type":"stream_eve)"},
  };
  return kinds;
}

void answer_malformed(const directive& wish) {
  const auto kind = wish.word("kind", "not_json");
  write_result(write_message(wish, "end_turn", [&](int count) {
    if (count != 1) return;
    out.raw(malformed_lines().at(kind));
    if (kind == "cut_off") leave(0);
  }));
}

// ---- tools of the client ------------------------------------------------------------------------

json wait_for_answer(const string& id) {
  while (answers.count(id) == 0) pause(10);
  const json none = json::object();
  return answers[id].value("response", none).value("mcp_response", none).value("result", none);
}

/// Shows one tool_use block and asks the client to run it. The id of that request.
string call_tool(int index, const string& name, const string& call) {
  const json given{{"city", "Oslo"}};
  const bool bare = std::getenv("CLAUDE_AGENT_SDK_MCP_NO_PREFIX") != nullptr;
  const auto told_name = (bare ? "" : "mcp__client__") + name;
  json block{{"type", "tool_use"}, {"id", call}, {"name", told_name}};
  block["input"] = json::object();
  out.line(lines::block_start(index, block));
  for (const auto& piece : {string(), given.dump()}) {
    out.line(lines::block_delta(index, "input_json_delta", "partial_json", piece));
  }
  block["input"] = given;
  out.line(lines::assistant(block));
  out.line(lines::block_stop(index));
  const json meta{{"claudecode/toolUseId", call}, {"progressToken", 2 + index}};
  const json params{{"name", name}, {"arguments", given}, {"_meta", meta}};
  return request_client(
      {{"method", "tools/call"}, {"params", params}, {"jsonrpc", "2.0"}, {"id", 2 + index}});
}

void answer_tool(const directive& wish) {
  std::map<string, string> requests;  // by call
  const auto names = wish.word("names", "a") + ",";
  out.line(lines::message_start());
  const auto say = wish.word("say", "");
  if (!say.empty()) write_text(0, {say});
  const auto first = say.empty() ? 0 : 1;
  for (size_t at = 0, end; (end = names.find(',', at)) != string::npos; at = end + 1) {
    const auto index = static_cast<int>(requests.size()) + first;
    const auto call = "toolu_" + std::to_string(::getpid()) + "_" + std::to_string(requests_sent);
    requests[call] = call_tool(index, names.substr(at, end - at), call);
    if (wish.number("parallel", 1) == 0) wait_for_answer(requests[call]);
  }
  stop_message("tool_use");
  json results = json::array();
  for (const auto& [call, request] : requests) {
    results.push_back(wait_for_answer(request).value("content", json()));
    out.line(lines::tool_result(call, results.back()));
  }
  out.line(lines::status());
  answer_whole(results.dump());
}

// ---- behaviours ---------------------------------------------------------------------------------

struct behaviour {
  const char* name;
  void (*run)(const directive&);
  const char* what;
};

const behaviour start_behaviours[] = {
    {"version", {}, "value=2.1.330: what --version prints"},
    {"slow_version", {}, "ms=1000: --version takes its time"},
    {"auth", {}, "method=api_key|claude.ai|third_party|none: what `auth status` says"},
    {"not_logged_in", {}, "`auth status` says so with exit status 1, and so does every turn"},
    {"bare_by_default", {}, "flag=--no-bare: without that flag a session reads no login"},
    {"slow_start", {}, "ms=1000: reads nothing and does nothing for a while"},
    {"never_warm", {}, "reads nothing and answers nothing, for ever"},
    {"crash_at_start", {}, "code=1: a message on stderr, and out"},
    {"exit_at_start", {}, "out with status 0, without a word"},
    {"crash_in_initialize", {}, "out when `initialize` comes"},
    {"no_answer_to_initialize", {}, "reads `initialize` and says nothing"},
    {"error_in_initialize", {}, "`initialize` fails"},
    {"no_answer_to_settings", {}, "reads `apply_flag_settings` and says nothing"},
    {"slow_control", {}, "ms=100: every control request takes its time"},
    {"crash_in_replay", {}, "after=0: out at a line of the history, when so many are done"},
    {"hang_in_replay", {}, "after=0: the same, but never acknowledges it"},
    {"slow_replay", {}, "ms=10: every line of the history takes its time"},
    {"journal_requests", {}, "the journal is told each turn's secrets, and of slow rewinds"},
    {"slow_rewind", {}, "every=1 ms=100: some requests to take back take their time"},
    {"refuses_rewind", {}, "after=0: takes no message back, when so many are taken back"},
    {"no_answer_to_rewind", {}, "after=0: the same, but says nothing to it"},
    {"crash_in_rewind", {}, "after=0: the same, but out"},
    {"talks_in_rewind", {}, "after=0: takes it back, and begins a message by itself"},
    {"confirms_unasked",
     {},
     "when interrupted it says that it took messages back, which nobody asked"},
    {"no_rewind_to_start", {}, "takes a conversation's first message not back, like 2.1.197"},
    {"unsupported_rewind", {}, "knows no request to take messages back, like 2.1.120"},
    {"slow_reader", {}, "chunk=65536 pause_ms=5: reads stdin in sips"},
    {"write_before_read", {}, "bytes=300000: writes that much before reading on in a long line"},
    {"answer", {}, "and a turn behaviour with its values: for turns without a directive"},
    {"until", {}, "n=1: the lines above hold for the first N sessions only (needs a journal)"},
};

const behaviour behaviours_aside[] = {
    {"split", split, "every byte is written on its own"},
    {"burst", burst, "the turn's lines are written at once"},
    {"stderr_flood", flood_stderr, "bytes=1048576: writes that much to stderr first"},
    {"ignore_sigterm", ignore_sigterm, "SIGTERM does nothing from now on"},
    {"ignore_eof", ignore_eof, "the end of stdin does nothing from now on"},
    {"grandchild", leave_grandchild, "ms=60000: leaves a child that holds the pipes open"},
    {"memory", hold_memory, "mib=100: holds that much memory"},
};

const behaviour turn_behaviours[] = {
    {"text", answer_text,
     "n=3 size=0 say=\"…\" delay_ms=0 first_ms=0 in= out= cache_read= cache_write="},
    {"echo", answer_echo, "answers with JSON: everything that this process has been told"},
    {"who", answer_who, "answers with JSON: pid, turn, number of messages, secrets it was told"},
    {"wakes", answer_wakes, "ms=200: answers as `text`, and begins another turn by itself"},
    {"thinking", answer_thinking, "n=2: thinks, then answers as `text`"},
    {"stop_sequence", answer_stop_sequence, "value=END: stops at it"},
    {"max_tokens", answer_max_tokens, "go_on_ms=5: stops at the limit; goes on by itself"},
    {"refusal", answer_refusal, "go_on_ms=5: is stopped by the classifier; goes on by itself"},
    {"tool", answer_tool,
     "names=a,b say= parallel=1: calls the client's tools, answers their results"},
    {"rate_limit", answer_rate_limit, "status=allowed_warning type=five_hour: tells, then `text`"},
    {"api_error", answer_api_error, "status=500 retries=1 delay_ms=500 wait_ms=0 after=0 say="},
    {"not_logged_in", answer_not_logged_in, "says so, as a result that is an error"},
    {"error_result", answer_error_result,
     "subtype=error_during_execution after=0: an error of the CLI"},
    {"retry_midstream", answer_retry_midstream,
     "how=same|different|assistant_only old=0 after=2 wait_ms=0: the API's stream broke"},
    {"hang", answer_hang, "after=-1: silent after so many deltas; -1: at once; at=stop: no result"},
    {"crash", answer_crash, "after=-1 at= code=1 signal=0: the same, but out"},
    {"exit_zero", answer_exit_zero, "after=-1 at=: the same, but out with status 0"},
    {"huge_line", answer_huge_line, "mib=1 endless=0: one line of that size; or without an end"},
    {"malformed", answer_malformed,
     "kind=not_json|not_object|missing_fields|wrong_types|unknown_types|invalid_utf8|nul|deep|"
     "out_of_order|cut_off: after the first delta"},
};

template <std::size_t count>
const behaviour* find_behaviour(const behaviour (&table)[count], const string& name) {
  const auto* found = std::find_if(std::begin(table), std::end(table),
                                   [&](const auto& row) { return row.name == name; });
  return found == std::end(table) ? nullptr : found;
}

template <std::size_t count>
void print_behaviours(const char* title, const behaviour (&table)[count]) {
  std::printf("\n%s:\n", title);
  for (const auto& row : table) std::printf("  %-24s%s\n", row.name, row.what);
}

/// The flag that takes back what `bare_by_default` says.
string full_flag() { return configuration["bare_by_default"].word("flag", "--no-bare"); }

void print_help() {
  std::puts("stand-in: a `claude` that does what it is told to.");
  if (configured("bare_by_default")) std::printf("  %s\n", full_flag().c_str());
  print_behaviours("Lines of PROGRAM.conf", start_behaviours);
  print_behaviours("Both there and beside an answer", behaviours_aside);
  print_behaviours("[[…]] in the user's text: the answer", turn_behaviours);
}

// ---- the loop -----------------------------------------------------------------------------------

/// What the live message asks for. Behaviours beside the answer have begun when this returns.
directive wish_in(const json& message) {
  directive wish{"text", {}};
  if (configured("answer")) wish = configuration["answer"];
  for (const auto& found : find_directives(text_of(message["content"]))) {
    const auto* aside = find_behaviour(behaviours_aside, found.name);
    if (aside != nullptr)
      aside->run(found);
    else
      wish = found;
  }
  if (configured("not_logged_in")) wish.name = "not_logged_in";
  return wish;
}

void end_interrupted() {
  const auto text = lines::open_text;
  if (!text.empty()) {
    out.line(
        lines::with(lines::assistant({{"type", "text"}, {"text", text}}), {{"aborted", true}}));
  }
  out.line(lines::user("[Request interrupted by user]"));
  remember({{"role", "user"}, {"content", "[Request interrupted by user]"}});
  if (!text.empty()) out.line(lines::block_stop(0));
  out.line(lines::abandoned_message_delta());
  out.line(lines::abandoned_message_stop());
  out.line(lines::interrupted_result());
}

void run_turn(const json& line) {
  turn_runs = true;
  interrupt_asked = last_turn_failed = false;
  ++lines::turns;
  remember(line["message"], line.value("uuid", ""));
  journal_turn();
  const auto wish = wish_in(line["message"]);
  lines::tokens = {wish.number("in", 10), wish.number("out", 7), wish.number("cache_read", 0),
                   wish.number("cache_write", 0)};
  if (!ends_unheard(wish)) {
    out.line(lines::init());
    out.line(lines::status());
  }
  const auto* behaviour = find_behaviour(turn_behaviours, wish.name);
  try {
    if (behaviour != nullptr)
      behaviour->run(wish);
    else
      answer_whole("the stand-in knows no " + wish.name);
  } catch (const interrupted&) {
    end_interrupted();
  }
  turn_runs = false;
  out.pace(pacing::line);
}

void replay(const json& line) {
  if (due("crash_in_replay", replayed)) leave(1);
  if (due("hang_in_replay", replayed)) hang();
  sleep_ms(configured_number("slow_replay", "ms", 10));
  ++replayed;
  remember(line["message"], line.value("uuid", ""));
  // The real one takes user lines that it has not acknowledged together, and the order is lost.
  unacknowledged += !lines_to_do.empty() || in.waiting();
  out.line(lines::init());
  out.line(lines::replay_result());
}

int run_session() {
  for (;;) {
    while (!lines_to_do.empty()) {
      const auto line = lines_to_do.front();
      lines_to_do.pop_front();
      if (line["type"] == "assistant")
        remember(line["message"]);
      else if (!line.value("shouldQuery", true))
        replay(line);
      else
        run_turn(line);
    }
    if (const auto line = in.next_line(-1))
      take_line(*line);
    else if (in.ended() && !in.ignore_eof)
      return last_turn_failed ? 1 : 0;
  }
}

string auth_method() {
  if (configured("not_logged_in")) return "none";
  const bool has_key = std::getenv("ANTHROPIC_API_KEY") != nullptr;
  const auto wish = configured("auth") ? configuration["auth"] : directive{"auth", {}};
  return wish.word("method", has_key ? "api_key" : "claude.ai");
}

int print_auth_status() {
  const auto& method = lines::auth_method;
  json status{{"loggedIn", method != "none"}, {"authMethod", method}};
  status["apiProvider"] = method == "third_party" ? "bedrock" : "firstParty";
  if (method == "api_key") status["apiKeySource"] = "ANTHROPIC_API_KEY";
  std::puts(status.dump(2).c_str());
  return method == "none" ? 1 : 0;
}

void misbehave_at_start() {
  for (const auto& [name, wish] : configuration) {
    if (const auto* aside = find_behaviour(behaviours_aside, name)) aside->run(wish);
  }
  if (configured("crash_at_start")) {
    std::fputs("stand-in: cannot start, as told\n", stderr);
    leave(configured_number("crash_at_start", "code", 1));
  }
  if (configured("exit_at_start")) leave(0);
  if (configured("never_warm")) sleep_ms(600'000);
  sleep_ms(configured_number("slow_start", "ms", 1000));
  if (configured("slow_reader")) {
    in.chunk = static_cast<size_t>(configured_number("slow_reader", "chunk", 65536));
    in.pause_ms = configured_number("slow_reader", "pause_ms", 5);
  }
  if (const auto bytes = configured_number("write_before_read", "bytes", 300'000); bytes > 0) {
    in.before_reading_on = [bytes] {
      in.before_reading_on = nullptr;
      for (int written = 0; written < bytes; written += 150) out.line(lines::status());
    };
  }
}

/// A misspelt behaviour would make a test pass for the wrong reason.
void check_configuration() {
  for (const auto& row : configuration) {
    if (find_behaviour(start_behaviours, row.first) ||
        find_behaviour(behaviours_aside, row.first)) {
      continue;
    }
    std::fprintf(stderr, "stand-in: knows no %s\n", row.first.c_str());
    leave(70);
  }
}

int main(int argc, char** argv) {
  ::alarm(300);  // whatever happens, nothing outlives a test run by much
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGTERM, on_terminate);
  program = find_program(argv[0]);
  open_journal(argc, argv);
  configuration = read_configuration();
  check_configuration();
  if (configured("version")) lines::version = configuration["version"].word("value", "2.1.330");
  lines::auth_method = auth_method();
  const std::vector<string> flags(argv + 1, argv + argc);
  const auto find = [&](const char* name) { return std::find(flags.begin(), flags.end(), name); };
  int status = 0;
  if (find("--help") != flags.end()) {
    print_help();
  } else if (find("--version") != flags.end()) {
    sleep_ms(configured_number("slow_version", "ms", 1000));
    std::printf("%s (Claude Code)\n", lines::version.c_str());
  } else if (!flags.empty() && flags[0] == "auth") {
    status = print_auth_status();
  } else if (find("-p") != flags.end()) {
    arguments = flags;
    if (configured("bare_by_default") && find(full_flag().c_str()) == flags.end()) {
      configuration["not_logged_in"] = {};
      lines::auth_method = "none";
    }
    lines::bare = find("--bare") != flags.end();
    for (const auto& flag : flags) {
      if (flag.rfind("--model=", 0) == 0) lines::model = flag.substr(8);
    }
    misbehave_at_start();
    try {
      status = run_session();
    } catch (const interrupted&) {  // outside a turn
    }
  }
  std::fflush(stdout);
  leave(status);
}
