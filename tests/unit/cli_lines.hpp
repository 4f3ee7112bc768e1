// The lines that the CLI writes, one function a kind, for tests of the decoder.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

namespace cli_lines {

using namespace claude_openai;
using events = turn_decoder::events;

/// The lines that the CLI writes, without what the decoder does not look at.
inline json line(const std::string& text) { return json::parse(text); }

inline json streamed(const std::string& event) {
  return line(R"({"type":"stream_event","event":)" + event + R"(,"parent_tool_use_id":null})");
}

inline json message_start(const std::string& id,
                          const std::string& usage = R"({"input_tokens":11})") {
  return streamed(R"({"type":"message_start","message":{"id":")" + id +
                  R"(","model":"model-1","usage":)" + usage + "}}");
}

inline json block_start(int index, const std::string& block) {
  return streamed(R"({"type":"content_block_start","index":)" + std::to_string(index) +
                  R"(,"content_block":)" + block + "}");
}

inline json text_start(int index = 0) { return block_start(index, R"({"type":"text","text":""})"); }

inline json delta(int index, const std::string& what) {
  return streamed(R"({"type":"content_block_delta","index":)" + std::to_string(index) +
                  R"(,"delta":)" + what + "}");
}

inline json text_delta(const std::string& text, int index = 0) {
  return delta(index, R"({"type":"text_delta","text":)" + dump(json(text)) + "}");
}

inline json block_stop(int index = 0) {
  return streamed(R"({"type":"content_block_stop","index":)" + std::to_string(index) + "}");
}

inline json message_delta(const std::string& reason,
                          const std::string& usage = R"({"output_tokens":7})") {
  return streamed(R"({"type":"message_delta","delta":{"stop_reason":)" + reason +
                  R"(,"stop_sequence":null},"usage":)" + usage + "}");
}

inline json message_stop() { return streamed(R"({"type":"message_stop"})"); }

inline json assistant(const std::string& id, const std::string& content,
                      const std::string& usage = R"({"input_tokens":11,"output_tokens":7})") {
  return line(R"({"type":"assistant","message":{"id":")" + id +
              R"(","model":"model-1","stop_reason":null,"content":)" + content + R"(,"usage":)" +
              usage + R"(},"parent_tool_use_id":null})");
}

inline json text_block(const std::string& text) {
  return json::array({json::object({{"type", "text"}, {"text", text}})});
}

inline json result(const std::string& more = "") {
  return line(R"({"type":"result","subtype":"success","is_error":false,"stop_reason":"end_turn",)"
              R"("result":"","total_cost_usd":0.5)" +
              more + "}");
}

inline json failed_result(const std::string& status, const std::string& told) {
  return line(R"({"type":"result","subtype":"success","is_error":true,"api_error_status":)" +
              status + R"(,"result":)" + dump(json(told)) + R"(,"stop_reason":"stop_sequence"})");
}

inline json api_retry(const std::string& delay, const std::string& status) {
  return line(R"({"type":"system","subtype":"api_retry","attempt":1,"max_retries":2,)"
              R"("retry_delay_ms":)" +
              delay + R"(,"error_status":)" + status + R"(,"error":"rate_limit"})");
}

inline json tool_start(int index, const std::string& id, const std::string& name) {
  return block_start(
      index, R"({"type":"tool_use","id":")" + id + R"(","name":")" + name + R"(","input":{}})");
}

inline json json_delta(int index, const std::string& text) {
  return delta(index, R"({"type":"input_json_delta","partial_json":)" + dump(json(text)) + "}");
}

inline json thinking_start(int index = 0) {
  return block_start(index, R"({"type":"thinking","thinking":"","signature":""})");
}

inline json thinking_delta(const std::string& text, int index = 0) {
  return delta(index, R"({"type":"thinking_delta","thinking":)" + dump(json(text)) + "}");
}

/// The lines of one streamed call, from its first to its last.
inline std::vector<json> call_lines(int index, const std::string& id, const std::string& name,
                                    const std::vector<std::string>& pieces) {
  std::vector<json> lines = {tool_start(index, id, name), json_delta(index, "")};
  for (const auto& piece : pieces) lines.push_back(json_delta(index, piece));
  lines.push_back(block_stop(index));
  return lines;
}

inline std::string tool_block(const std::string& id, const std::string& name,
                              const std::string& input) {
  return R"([{"type":"tool_use","id":")" + id + R"(","name":")" + name + R"(","input":)" + input +
         "}]";
}

/// The process asks the client to run its tool.
inline json tools_call(const std::string& id) {
  return line(R"({"type":"control_request","request_id":"r","request":{"subtype":"mcp_message",)"
              R"("server_name":"client","message":{"method":"tools/call","jsonrpc":"2.0","id":2,)"
              R"("params":{"_meta":{"claudecode/toolUseId":")" +
              id + R"("}}}}})");
}

/// The CLI tells what a tool has answered.
inline json tool_result(const std::string& id, const std::string& text, bool failed = false) {
  json block = json::object({{"type", "tool_result"}, {"tool_use_id", id}, {"content", text}});
  if (failed) block["is_error"] = true;
  const json message = json::object({{"role", "user"}, {"content", json::array({block})}});
  return json::object({{"type", "user"}, {"message", message}, {"parent_tool_use_id", json()}});
}

inline json requesting() {
  return line(R"({"type":"system","subtype":"status","status":"requesting"})");
}

inline json init(const std::string& tools) {
  return line(R"({"type":"system","subtype":"init","tools":)" + tools + "}");
}

inline json thinking_tokens(int more) {
  return line(R"({"type":"system","subtype":"thinking_tokens","estimated_tokens":99,)"
              R"("estimated_tokens_delta":)" +
              std::to_string(more) + "}");
}

struct decoded {
  events told;
  std::vector<std::string> calls;
  bool finished = false;
  bool cut = false;

  std::string text() const { return test::text_of(told); }
  std::string activity() const { return test::said_in(block_kind::activity, told); }
  std::string arguments() const { return test::said_in(block_kind::tool_call, told); }
  turn_stopped end() const { return test::end_of(told).value(); }
  api_error failure() const { return test::failure_of(told).value(); }
};

/// Of an answer that is told while it comes.
inline answer_shape streamed_shape() {
  answer_shape shape;
  shape.streamed = true;
  return shape;
}

inline decoded decode(const std::vector<json>& lines,
                      const answer_shape& shape = streamed_shape()) {
  decoded all;
  turn_decoder decoder(0, shape);
  for (const auto& one : lines) decoder.decode(one, all.told);
  all.calls = decoder.calls();
  all.finished = decoder.finished();
  all.cut = decoder.was_cut();
  const auto problem = test::grammar_problem(all.told);
  CHECK((problem.empty() || (problem == test::grammar_checker::unfinished && !all.finished)));
  return all;
}

inline std::vector<json> hello(const std::string& reason = R"("end_turn")") {
  return {message_start("m1"), text_start(),          text_delta("Hel"), text_delta("lo"),
          block_stop(),        message_delta(reason), message_stop()};
}

inline std::vector<json> operator+(std::vector<json> lines, const std::vector<json>& more) {
  lines.insert(lines.end(), more.begin(), more.end());
  return lines;
}

inline std::vector<std::string> deltas_of(const events& told) {
  std::vector<std::string> texts;
  for (const auto& what : told) {
    if (const auto* piece = std::get_if<block_delta>(&what)) texts.push_back(piece->text);
  }
  return texts;
}

}  // namespace cli_lines
