// The lines that `claude` 2.1.330 prints, out of tests/golden/*.2.1.330.jsonl with the long lists
// cut short. stand_in_test.cpp compares their members with the recordings'.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include <unistd.h>

namespace lines {

using json = nlohmann::ordered_json;  // the real order of members is kept
using std::string;

struct token_counts {
  int input = 10, output = 7, cache_read = 0, cache_write = 0;
};

inline string model = "claude-opus-5-5";
inline string version = "2.1.330";
inline token_counts tokens;
inline double cost = 0;
inline int turns = 0;
inline int messages = 0;
inline bool bare = false;
inline bool serves_tools = false;
inline string open_text;  // of the text block that is being written

inline const json session = "c69a7847-cc31-47ff-95b0-5fceb3ac2504";
inline const json time = "2026-11-22T19:45:55.316Z";

inline json uuid() {
  static unsigned count = 0;
  char text[40];
  std::snprintf(text, sizeof text, "%08x-0000-4000-8000-%012x", static_cast<unsigned>(::getpid()),
                ++count);
  return text;
}

inline json message_id() { return "msg_" + std::to_string(messages); }

/// The first, with its members replaced, and the new ones added, by those of the second.
inline json with(json line, const json& more) {
  line.update(more);
  return line;
}

inline json parsed(const char* text) { return json::parse(text); }

// ---- the session --------------------------------------------------------------------------------

inline json init() {
  static const auto line =
      parsed(R"json({"type":"system","subtype":"init","cwd":"/","session_id":"",
    "tools":[],"mcp_servers":[],"model":"","permissionMode":"default","slash_commands":["clear"],
    "terminal_slash_commands":["doctor"],"apiKeySource":"ANTHROPIC_API_KEY",
    "claude_code_version":"","output_style":"default","agents":["claude"],"skills":["dataviz"],
    "plugins":[{"name":"a","path":"builtin","source":"a"}],
    "capabilities":["interrupt_receipt_v1"],"analytics_disabled":true,
    "product_feedback_disabled":true,"served_by_anthropic":false,"uuid":"","original_cwd":"/",
    "additional_directories":[],"fast_mode_state":"off",
    "fast_mode_disabled_reason":"sdk_opt_in_required","per_turn_effort_active":false,
    "ultrathink_available":false,"ultrathink_typed_raises":false,"view_mode":"default"})json");
  auto own = with(line, {{"session_id", session},
                         {"model", model},
                         {"uuid", uuid()},
                         {"claude_code_version", version}});
  if (!bare) own["memory_paths"] = {{"auto", "/memory/"}};
  if (!bare) own["messaging_socket_path"] = "/0.sock";
  if (serves_tools) {
    own["mcp_servers"] =
        json::array({{{"name", "client"}, {"status", "connected"}, {"source", "sdk"}}});
  }
  return own;
}

inline json system(const char* subtype, const json& more) {
  return with(with({{"type", "system"}, {"subtype", subtype}}, more),
              {{"session_id", session}, {"uuid", uuid()}});
}

inline json status() { return system("status", {{"status", "requesting"}}); }

inline json api_retry(int attempt, int retries, const json& delay_ms, const json& status,
                      const char* error) {
  return system("api_retry", {{"attempt", attempt},
                              {"max_retries", retries},
                              {"retry_delay_ms", delay_ms},
                              {"error_status", status},
                              {"error", error}});
}

/// The way to the model: `api_key`, `claude.ai`, `third_party`, or `none`.
inline string auth_method = "api_key";

inline json account() {
  if (auth_method == "none") return {{"tokenSource", "none"}, {"apiProvider", "firstParty"}};
  if (auth_method == "claude.ai") {
    return {{"tokenSource", "claude.ai"}, {"apiProvider", "firstParty"}};
  }
  if (auth_method == "third_party") return {{"tokenSource", "none"}, {"apiProvider", "bedrock"}};
  return {{"tokenSource", "none"},
          {"apiKeySource", "ANTHROPIC_API_KEY"},
          {"apiProvider", "firstParty"}};
}

inline json initialize_answer() {
  static const auto answer = parsed(R"json({
    "commands":[{"name":"clear","description":"","argumentHint":"","builtin":true,
      "aliases":["reset"]}],
    "agents":[{"name":"claude","description":"Catch-all","model":"inherit"}],
    "output_style":"default",
    "available_output_styles":["default"],"user_output_styles_dir":"/output-styles","models":[
      {"value":"default","resolvedModel":"claude-opus-5-5","displayName":"Default (recommended)",
       "description":"Opus 5.5","supportsEffort":true,"supportedEffortLevels":["low","high"],
       "supportsAdaptiveThinking":true,"supportsFastMode":true,"supportsAutoMode":true,
       "supportsThinkingOff":false},
      {"value":"claude-sonnet-4-5","resolvedModel":"claude-sonnet-4-5","displayName":"Sonnet 4.5",
       "description":"Newer version available","supportsThinkingOff":true}],
    "account":{},"pid":0,"claude_code_version":"","current_permission_mode":"default",
    "hook_on_failure_supported":true,"hooks_when_unanswered_kept":0,
    "other_hook_ask_outranks_host":true,"feedback_mode":{"kind":"disabled"},
    "analytics_disabled":true,"remote_control_auto_enable":false,
    "remote_control_auto_connect_default":false,"remote_control_available":false,
    "remote_control_auto_on_by_default":false,"ide_rc_auto_enable_gate":false,
    "fast_mode_state":"off","fast_mode_disabled_reason":"sdk_opt_in_required",
    "session_state":"idle","capabilities":["ui_surface_v1"]})json");
  return with(answer,
              {{"account", account()}, {"pid", ::getpid()}, {"claude_code_version", version}});
}

inline json control_success(const json& id, const json& response) {
  json body{{"subtype", "success"}, {"request_id", id}};
  if (!response.is_null()) body["response"] = response;
  return {{"type", "control_response"}, {"response", body}};
}

inline json initialize_success(const json& id) {
  auto line = control_success(id, initialize_answer());
  line["response"]["pending_permission_requests"] = json::array();
  line["response"]["pending_user_dialog_requests"] = json::array();
  return line;
}

inline json control_error(const json& id, const string& error, const char* code) {
  json body{{"subtype", "error"}, {"request_id", id}, {"error", error}, {"error_code", code}};
  return {{"type", "control_response"}, {"response", body}};
}

inline json mcp_request(const string& id, const json& message) {
  json request{{"subtype", "mcp_message"}, {"server_name", "client"}, {"message", message}};
  return {{"type", "control_request"}, {"request_id", id}, {"request", request}};
}

// ---- one message of the API ---------------------------------------------------------------------

inline json api_usage(int output_tokens) {
  return {{"input_tokens", tokens.input},
          {"cache_creation_input_tokens", tokens.cache_write},
          {"cache_read_input_tokens", tokens.cache_read},
          {"cache_creation",
           {{"ephemeral_5m_input_tokens", tokens.cache_write}, {"ephemeral_1h_input_tokens", 0}}},
          {"output_tokens", output_tokens},
          {"service_tier", "standard"}};
}

inline json event(const json& what) {
  json line{{"type", "stream_event"}, {"event", what}, {"session_id", session}};
  line.update({{"parent_tool_use_id", nullptr}, {"uuid", uuid()}});
  if (what["type"] == "message_start") line["ttft_ms"] = 18;
  line["api_message_id"] = message_id();
  return line;
}

inline json api_message(const json& content, const json& stop_reason) {
  return {{"id", message_id()},       {"type", "message"},    {"role", "assistant"},
          {"model", model},           {"content", content},   {"stop_reason", stop_reason},
          {"stop_sequence", nullptr}, {"usage", api_usage(1)}};
}

inline json message_start() {
  ++messages;
  open_text.clear();
  return event({{"type", "message_start"}, {"message", api_message(json::array(), nullptr)}});
}

/// Lines of a message that shows its thinking say how.
inline json with_thinking(const json& line) {
  return with(line, {{"thinking_display", "updates"}});
}

inline json block_start(int index, const json& block) {
  return event({{"type", "content_block_start"}, {"index", index}, {"content_block", block}});
}

inline json text_block_start(int index) {
  open_text.clear();
  return block_start(index, {{"type", "text"}, {"text", ""}});
}

inline json block_delta(int index, const char* type, const char* member, const string& text) {
  return event({{"type", "content_block_delta"},
                {"index", index},
                {"delta", {{"type", type}, {member, text}}}});
}

inline json text_delta(int index, const string& text) {
  open_text += text;
  return block_delta(index, "text_delta", "text", text);
}

inline json block_stop(int index) {
  open_text.clear();
  return event({{"type", "content_block_stop"}, {"index", index}});
}

inline json message_delta(const string& reason, const json& stop_sequence) {
  return event({{"type", "message_delta"},
                {"delta", {{"stop_reason", reason}, {"stop_sequence", stop_sequence}}},
                {"usage", api_usage(tokens.output)}});
}

inline json message_stop() { return event({{"type", "message_stop"}}); }

inline json abandoned_message_delta() {
  const json delta{{"container", nullptr},
                   {"stop_details", nullptr},
                   {"stop_reason", nullptr},
                   {"stop_sequence", nullptr}};
  return event({{"type", "message_delta"},
                {"context_management", nullptr},
                {"delta", delta},
                {"usage", api_usage(1)}});
}

inline json abandoned_message_stop() {
  return with(message_stop(),
              {{"abandoned_blocks", {{"api_message_id", message_id()}, {"from_block_index", 0}}}});
}

inline json with_ids(const json& line) {
  return with(line, {{"parent_tool_use_id", nullptr},
                     {"session_id", session},
                     {"uuid", uuid()},
                     {"timestamp", time}});
}

inline json assistant(const json& block, const json& stop_reason = nullptr) {
  auto message = api_message(json::array({block}), stop_reason);
  message["context_management"] = nullptr;
  auto line = with_ids({{"type", "assistant"}, {"message", message}});
  line["request_id"] = "req_" + std::to_string(messages);
  if (block["type"] == "thinking") line["thinking_duration_ms"] = 1;
  if (block["type"] == "tool_use") {
    line["tool_use_meta"] = json::array({{{"id", block["id"]},
                                          {"display_name", block["name"]},
                                          {"server_display_name", "client"},
                                          {"tool_name", block["name"]}}});
  }
  return line;
}

/// What the CLI says in the user's name.
inline json user(const string& text, const json& more = json::object()) {
  const json content{{{"type", "text"}, {"text", text}}};
  return with(with_ids({{"type", "user"}, {"message", {{"role", "user"}, {"content", content}}}}),
              more);
}

inline json tool_result(const string& call, const json& content) {
  json block{{"tool_use_id", call}, {"type", "tool_result"}, {"content", content}};
  auto line = with_ids(
      {{"type", "user"}, {"message", {{"role", "user"}, {"content", json::array({block})}}}});
  line["tool_use_result"] = content;
  const json decision{{"decision", "accept"}, {"source", "config"}, {"reason_type", "rule"}};
  line["tool_result_meta"] = json::array({{{"id", call}, {"permission_decision", decision}}});
  return line;
}

// ---- the end of a turn --------------------------------------------------------------------------

/// What acknowledges a line of the history.
inline json replay_result() {
  static const auto line = parsed(R"json({"is_error":false,"duration_api_ms":0,"num_turns":0,
    "stop_reason":null,"session_id":"","total_cost_usd":0,"usage":{
      "output_tokens_details":{"thinking_tokens":0},"input_tokens":0,
      "cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0,
      "server_tool_use":{"web_search_requests":0,"web_fetch_requests":0},
      "service_tier":"standard",
      "cache_creation":{"ephemeral_1h_input_tokens":0,"ephemeral_5m_input_tokens":0},
      "inference_geo":"","iterations":[],"speed":"standard","fallback_credit":null},
    "modelUsage":{},"permission_denials":[],"fast_mode_state":"off",
    "fast_mode_disabled_reason":"sdk_opt_in_required","subagent_stats":{"spawned":0,
      "requested":{"background":0,"foreground":0,"unset":0},"started_in_background":0,
      "max_depth":0,"spawned_by_subagents":0,"completed":0,"failed":0,
      "killed":{"parent":0,"user":0,"system":0},
      "refused":{"depth_limit":0,"concurrency_limit":0,"budget":0},"by_type":{}},
    "safety_stops":0,"subtype":"success","result":"","type":"result","duration_ms":18,
    "uuid":"","queued_turn_count":0,"result_index":0,"model_usage_since_last_result":{}})json");
  return with(line, {{"session_id", session}, {"uuid", uuid()}, {"total_cost_usd", cost}});
}

/// A result of a turn that reached the API. The real order: `type` comes late.
inline json result(const string& text, const json& stop_reason) {
  cost += 0.000135;
  auto line = with(replay_result(), {{"terminal_reason", "completed"},
                                     {"is_error", false},
                                     {"num_turns", 1},
                                     {"api_error_status", nullptr},
                                     {"result", text},
                                     {"stop_reason", stop_reason},
                                     {"total_cost_usd", cost},
                                     {"result_index", turns}});
  line["usage"].update({{"input_tokens", tokens.input},
                        {"output_tokens", tokens.output},
                        {"cache_creation_input_tokens", tokens.cache_write},
                        {"cache_read_input_tokens", tokens.cache_read}});
  line["modelUsage"] = {{model,
                         {{"inputTokens", tokens.input},
                          {"outputTokens", tokens.output},
                          {"cacheReadInputTokens", tokens.cache_read},
                          {"cacheCreationInputTokens", tokens.cache_write},
                          {"costUSD", cost}}}};
  line["model_usage_since_last_result"] = line["modelUsage"];
  line["begun_message_ids"] = json::array({message_id()});
  for (const char* name : {"ttft_ms", "ttft_stream_ms", "time_to_request_ms"}) line[name] = 78;
  line["first_content_frame_ms"] = 79;
  return line;
}

inline json without(json line, std::initializer_list<const char*> names) {
  for (const char* name : names) line.erase(name);
  return line;
}

/// A result that tells of an error: nothing came from the API.
inline json failed_result(const string& text, const json& more) {
  const auto line =
      without(result(text, "stop_sequence"),
              {"ttft_ms", "ttft_stream_ms", "time_to_request_ms", "first_content_frame_ms"});
  return with(with(line, {{"is_error", true},
                          {"terminal_reason", "api_error"},
                          {"begun_message_ids", json::array()}}),
              more);
}

/// The CLI's own words for an error, in the shape of an answer.
inline json synthetic_assistant(const string& text, const json& more) {
  static const auto message = parsed(R"json({"diagnostics":null,"id":"","container":null,
    "model":"<synthetic>","role":"assistant","stop_details":null,"stop_reason":"stop_sequence",
    "stop_sequence":"","type":"message","usage":{"output_tokens_details":null,"input_tokens":0,
      "output_tokens":0,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,
      "server_tool_use":{"web_search_requests":0,"web_fetch_requests":0},"service_tier":null,
      "cache_creation":{"ephemeral_1h_input_tokens":0,"ephemeral_5m_input_tokens":0},
      "inference_geo":null,"iterations":null,"speed":null,"fallback_credit":null},
    "content":[],"context_management":null})json");
  const json content{{{"type", "text"}, {"text", text}}};
  return with(with_ids({{"type", "assistant"},
                        {"message", with(message, {{"id", uuid()}, {"content", content}})}}),
              more);
}

/// What an interrupted turn ends with.
inline json interrupted_result() {
  const auto line =
      without(result("", nullptr), {"result", "api_error_status", "ttft_ms", "ttft_stream_ms",
                                    "time_to_request_ms", "first_content_frame_ms"});
  return with(line, {{"terminal_reason", "aborted_streaming"},
                     {"is_error", true},
                     {"num_turns", 2},
                     {"subtype", "error_during_execution"},
                     {"errors", json::array({"[ede_diagnostic] result_type=user"})}});
}

inline json rate_limit_event(const json& info) {
  return {{"type", "rate_limit_event"},
          {"rate_limit_info", info},
          {"session_id", session},
          {"uuid", uuid()}};
}

}  // namespace lines
