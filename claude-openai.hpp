// claude-openai: makes the `claude` CLI answer OpenAI clients, over processes that stay alive.
// One header, C++17. It needs cpp-httplib and nlohmann/json; `main.cpp` beside it is the program.
//
//   claude_openai::options settings;
//   settings.environment = claude_openai::current_environment();
//   claude_openai::server proxy(settings);
//   proxy.bind();
//   proxy.run();
//
// Table of contents. A section uses only sections above it; the compiler proves the order.
//
//   values       [01] text              [02] errors           [03] log
//                [04] json_access       [05] options          [06] conversation
//                [07] events
//   translators  [08] sse               [09] openai_chat      [10] catalog
//                [11] cli_protocol      [12] cli_command
//   processes    [13] process           [14] worker           [15] pool
//                [16] sessions          [17] engine
//   edge         [18] guard             [19] status           [20] http
//                [21] server
//
// The way a request goes:
//
//   httplib request -> parse_body -> reader -> openai_chat::parse -> turn_request
//   turn_request -> engine: session, pool ticket -> lease -> worker -> child stdin
//   child stdout -> line_splitter -> turn_decoder -> event -> turn::next
//     stream:      reply::write(event) -> SSE bytes -> socket
//     not stream:  collector -> turn_result -> reply::render -> body
//
// Threads: one accepts, one per connection serves (it polls the child's pipes and the client's
// socket itself: pull, not push), one janitor starts spares and reaps.
#ifndef CLAUDE_OPENAI_HPP
#define CLAUDE_OPENAI_HPP

#define CLAUDE_OPENAI_VERSION "0.1.0"

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <httplib.h>
#include <nlohmann/json.hpp>

namespace claude_openai {

//================================================================================================
// [01] text - strings: splitting, UTF-8, identifiers, times
// uses: nothing | pure
//================================================================================================

namespace text {

inline bool starts_with(std::string_view value, std::string_view prefix) {
  return value.substr(0, prefix.size()) == prefix;
}

/// The value without leading and trailing spaces, tabs and line ends.
inline std::string_view trim(std::string_view value) {
  constexpr std::string_view blanks = " \t\r\n";
  const auto first = value.find_first_not_of(blanks);
  if (first == std::string_view::npos) return {};
  return value.substr(first, value.find_last_not_of(blanks) - first + 1);
}

/// The trimmed, non-empty pieces between separators.
inline std::vector<std::string> split(std::string_view value, char separator) {
  std::vector<std::string> pieces;
  while (!value.empty()) {
    const auto end = std::min(value.find(separator), value.size());
    if (const auto piece = trim(value.substr(0, end)); !piece.empty()) pieces.emplace_back(piece);
    value.remove_prefix(std::min(end + 1, value.size()));
  }
  return pieces;
}

inline std::string join(const std::vector<std::string>& pieces, std::string_view separator) {
  std::string joined;
  for (const auto& piece : pieces) {
    if (&piece != &pieces.front()) joined += separator;
    joined += piece;
  }
  return joined;
}

inline std::string to_lower(std::string_view value) {
  std::string lower(value);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

/// The number when the whole value is one, in the type's range.
template <class Number>
std::optional<Number> try_number(std::string_view value) {
  static_assert(std::is_integral<Number>::value, "integers only");
  Number number = 0;
  bool negative = false;
  if (std::is_signed<Number>::value && starts_with(value, "-")) {
    negative = true;
    value.remove_prefix(1);
  }
  if (value.empty()) return std::nullopt;
  for (const char c : value) {
    if (c < '0' || c > '9') return std::nullopt;
    const auto digit = static_cast<Number>(c - '0');
    if (number > (std::numeric_limits<Number>::max() - digit) / 10) return std::nullopt;
    number = static_cast<Number>(number * 10 + digit);
  }
  return negative ? static_cast<Number>(-number) : number;
}

/// Length of the well-formed UTF-8 sequence at the front (RFC 3629), 0 when there is none.
inline std::size_t utf8_sequence_length(std::string_view bytes) {
  const auto at = [&](std::size_t i) {
    return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0U;
  };
  const auto continues = [&](std::size_t i) { return (at(i) & 0xC0U) == 0x80U; };
  const unsigned lead = at(0);
  if (bytes.empty()) return 0;
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return continues(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const bool overlong = lead == 0xE0 && at(1) < 0xA0;
    const bool surrogate = lead == 0xED && at(1) > 0x9F;
    return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const bool overlong = lead == 0xF0 && at(1) < 0x90;
    const bool too_high = lead == 0xF4 && at(1) > 0x8F;
    return continues(1) && continues(2) && continues(3) && !overlong && !too_high ? 4 : 0;
  }
  return 0;
}

/// The same text with every malformed byte replaced by U+FFFD.
inline std::string repair_utf8(std::string_view bytes) {
  std::string repaired;
  repaired.reserve(bytes.size());
  while (!bytes.empty()) {
    const auto length = utf8_sequence_length(bytes);
    repaired += length > 0 ? bytes.substr(0, length) : std::string_view("\xEF\xBF\xBD");
    bytes.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return repaired;
}

/// Compares in a time that depends on the presented length only, so that a key cannot be guessed
/// byte by byte.
inline bool constant_time_equal(std::string_view presented, std::string_view secret) {
  std::size_t difference = presented.size() ^ secret.size();
  for (std::size_t i = 0; i < presented.size(); ++i) {
    const char expected = secret.empty() ? '\0' : secret[i % secret.size()];
    difference |= static_cast<unsigned char>(presented[i] ^ expected);
  }
  return difference == 0;
}

/// `prefix` and `length` random characters of `[A-Za-z0-9]` from the system's generator.
inline std::string random_id(std::string_view prefix, std::size_t length) {
  constexpr std::string_view alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  thread_local std::random_device source;
  std::uniform_int_distribution<std::size_t> pick(0, alphabet.size() - 1);
  std::string id(prefix);
  for (std::size_t i = 0; i < length; ++i) id += alphabet[pick(source)];
  return id;
}

/// `2026-11-22T18:09:34.356Z`
inline std::string iso_time(std::chrono::system_clock::time_point time) {
  using namespace std::chrono;
  const auto ms = duration_cast<milliseconds>(time.time_since_epoch()).count();
  const auto seconds_since_epoch = static_cast<std::time_t>(ms / 1000);
  std::tm parts{};
  gmtime_r(&seconds_since_epoch, &parts);
  std::array<char, 32> date{};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  const auto fraction = std::to_string(1000 + ms % 1000).substr(1);
  return std::string(date.data()) + "." + fraction + "Z";
}

}  // namespace text

//================================================================================================
// [02] errors - what can go wrong, and the HTTP status that tells it
// uses: nothing | pure
//================================================================================================

/// Every failure a client can be told of.
enum class error_kind {
  invalid_request,     ///< 400: a field is wrong
  authentication,      ///< 401: the client's key, or the account's credentials at the API
  permission,          ///< 403
  not_found,           ///< 404
  method_not_allowed,  ///< 405
  too_large,           ///< 413
  rate_limited,        ///< 429
  internal,            ///< 500: a fault of ours
  upstream_failed,     ///< 500: the API failed
  bad_gateway,         ///< 502: `claude` crashed or said what nobody understands
  unavailable,         ///< 503: no `claude`, no login, no free process
  overloaded,          ///< 503: the API is overloaded (its own 529 is unknown to OpenAI clients)
  timed_out,           ///< 504
};

inline int http_status(error_kind kind) {
  switch (kind) {
    case error_kind::invalid_request: return 400;
    case error_kind::authentication: return 401;
    case error_kind::permission: return 403;
    case error_kind::not_found: return 404;
    case error_kind::method_not_allowed: return 405;
    case error_kind::too_large: return 413;
    case error_kind::rate_limited: return 429;
    case error_kind::internal:
    case error_kind::upstream_failed: return 500;
    case error_kind::bad_gateway: return 502;
    case error_kind::unavailable:
    case error_kind::overloaded: return 503;
    case error_kind::timed_out: return 504;
  }
  return 500;
}

/// A failure in dialect-neutral form. Thrown by parsers and guards; carried by `turn_failed` when
/// the backend is the cause.
class api_error : public std::exception {
 public:
  api_error(error_kind what_kind, std::string text) : kind(what_kind), message(std::move(text)) {}

  const char* what() const noexcept override { return message.c_str(); }

  error_kind kind;
  std::string message;
  std::string param;  ///< path of the offending field, such as `messages[0].role`
  std::string code;   ///< machine-readable word, such as `model_not_found`
  std::optional<std::chrono::milliseconds> retry_after;
  bool retry_is_futile = false;  ///< true: the operator must act first
};

/// A 400 that names its field.
inline api_error bad_field(std::string path, std::string_view problem) {
  api_error error(error_kind::invalid_request, "'" + path + "' " + std::string(problem));
  error.param = std::move(path);
  return error;
}

//================================================================================================
// [03] log - a levelled logger as a value
// uses: text | thread-safe
//================================================================================================

enum class log_level { debug, info, warning, error, off };

constexpr std::array<std::string_view, 5> log_level_names = {"debug", "info", "warning", "error",
                                                             "off"};

/// Length of the credential's mark (`sk-`, `Bearer `, `AKIA`) at the front; 0 when there is none.
inline std::size_t credential_mark_length(std::string_view line) {
  for (const std::string_view mark : {"sk-", "bearer ", "akia"}) {
    if (text::to_lower(line.substr(0, mark.size())) == mark) return mark.size();
  }
  return 0;
}

/// The line with whatever looks like a credential masked.
inline std::string redact(std::string_view line) {
  constexpr std::string_view token_punctuation = "-_./+=~";
  const auto in_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; };
  const auto in_token = [&](char c) {
    return in_word(c) || token_punctuation.find(c) != std::string_view::npos;
  };
  std::string safe;
  while (!line.empty()) {
    const bool word_begins = safe.empty() || !in_word(safe.back());
    const auto mark = word_begins ? credential_mark_length(line) : 0;
    const auto shown = std::max<std::size_t>(mark, 1);
    safe += line.substr(0, shown);
    line.remove_prefix(shown);
    if (mark == 0) continue;
    const auto end = std::find_if_not(line.begin(), line.end(), in_token);
    const auto length = static_cast<std::size_t>(end - line.begin());
    if (length < 6) continue;  // a word of a sentence
    safe += "***";
    line.remove_prefix(length);
  }
  return safe;
}

/// Writes lines to one sink. Copies share the sink; every call is safe from any thread.
class logger {
 public:
  using sink = std::function<void(log_level, const std::string& line)>;

  /// A logger without a sink says nothing.
  logger() : logger(log_level::off, nullptr) {}
  logger(log_level least, sink write)
      : state_(std::make_shared<state>(least, std::move(write))) {}

  bool wants(log_level level) const {
    return state_->write != nullptr && level >= state_->least && level != log_level::off;
  }

  void debug(const std::string& line) const { write(log_level::debug, line); }
  void info(const std::string& line) const { write(log_level::info, line); }
  void warning(const std::string& line) const { write(log_level::warning, line); }
  void error(const std::string& line) const { write(log_level::error, line); }

 private:
  struct state {
    state(log_level at_least, sink to) : least(at_least), write(std::move(to)) {}
    log_level least;
    sink write;
    std::mutex mutex;
  };

  void write(log_level level, const std::string& line) const {
    if (!wants(level)) return;
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->write(level, redact(line));
  }

  std::shared_ptr<state> state_;
};

//================================================================================================
// [04] json_access - bounded parsing and path-carrying reads of untrusted JSON
// uses: text, errors | pure
//================================================================================================

/// Keeps the order of members: the order of a schema's properties steers what a model writes.
using json = nlohmann::ordered_json;

constexpr std::size_t max_json_depth = 128;
/// Name comparisons that parsing may cost: one object of 6,000 members, or many small ones.
constexpr std::size_t max_json_comparisons = 20'000'000;

/// Throws when the text nests deeper or has larger objects than a parser can take safely:
/// nlohmann's recursion overflows the stack, and ordered objects look names up one by one.
inline void check_json_bounds(std::string_view body) {
  std::vector<std::size_t> members;  // of each object and array around the current byte
  std::size_t comparisons = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') members.push_back(0);
    if ((c == ']' || c == '}') && !members.empty()) members.pop_back();
    if (c == ':' && !members.empty()) comparisons += members.back()++;
    if (members.size() > max_json_depth) {
      throw api_error(error_kind::invalid_request, "the JSON is nested too deeply");
    }
    if (comparisons > max_json_comparisons) {
      throw api_error(error_kind::invalid_request, "an object in the JSON has too many fields");
    }
  }
}

/// Untrusted text to JSON. Throws a 400 that tells the byte at which the text is broken.
inline json parse_body(std::string_view body) {
  if (text::trim(body).empty()) {
    throw api_error(error_kind::invalid_request, "the request body is empty; send a JSON object");
  }
  check_json_bounds(body);
  try {
    json parsed = json::parse(body.begin(), body.end());
    if (parsed.is_object()) return parsed;
  } catch (const json::parse_error& broken) {
    throw api_error(error_kind::invalid_request, "the request body is not valid JSON (byte " +
                                                     std::to_string(broken.byte) + ")");
  } catch (const json::exception&) {
    throw api_error(error_kind::invalid_request, "the request body holds a number out of range");
  }
  throw api_error(error_kind::invalid_request, "the request body must be a JSON object");
}

/// Compact text; malformed UTF-8 becomes U+FFFD instead of an exception.
inline std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

/// Reads a value whose path is known, so that every complaint names its field. Throws `api_error`.
/// Null counts as absent, as clients send it for "not set". Borrows the value.
class reader {
 public:
  explicit reader(const json& value, std::string path = {})
      : value_(&value), path_(std::move(path)) {}

  const json& value() const { return *value_; }
  const std::string& path() const { return path_; }
  bool is_string() const { return value_->is_string(); }
  bool is_array() const { return value_->is_array(); }

  /// The member, unless it is absent or null.
  std::optional<reader> find(const char* name) const {
    if (!value_->is_object()) fail("must be an object");
    const auto member = value_->find(name);
    if (member == value_->end() || member->is_null()) return std::nullopt;
    return reader(*member, path_.empty() ? name : path_ + "." + name);
  }

  reader require(const char* name) const {
    if (auto member = find(name)) return *member;
    throw bad_field(path_.empty() ? name : path_ + "." + name, "is required");
  }

  std::vector<reader> elements() const {
    if (!value_->is_array()) fail("must be an array");
    std::vector<reader> found;
    for (std::size_t i = 0; i < value_->size(); ++i) {
      found.emplace_back((*value_)[i], path_ + "[" + std::to_string(i) + "]");
    }
    return found;
  }

  const std::string& string() const {
    if (!value_->is_string()) fail("must be a string");
    return value_->get_ref<const std::string&>();
  }

  bool boolean() const {
    if (!value_->is_boolean()) fail("must be a boolean");
    return value_->get<bool>();
  }

  double number(double low, double high) const {
    if (!value_->is_number()) fail("must be a number");
    const auto number = value_->get<double>();
    if (!(number >= low && number <= high)) fail("must be between " + bounds(low, high));
    return number;
  }

  std::int64_t integer(std::int64_t low, std::int64_t high) const {
    if (!value_->is_number_integer()) fail("must be an integer");
    const auto number = value_->get<std::int64_t>();
    const bool wrapped = value_->is_number_unsigned() && number < 0;
    if (wrapped || number < low || number > high) {
      fail("must be between " + std::to_string(low) + " and " + std::to_string(high));
    }
    return number;
  }

  [[noreturn]] void fail(std::string_view problem) const {
    throw bad_field(path_.empty() ? "body" : path_, problem);
  }

 private:
  static std::string bounds(double low, double high) {
    return dump(json(low)) + " and " + dump(json(high));
  }

  const json* value_;
  std::string path_;
};

/// Reads trusted-shape JSON (the CLI's lines) without throwing: the member or the fallback.
inline const json& member_of(const json& object, const char* name) {
  static const json absent;
  if (!object.is_object()) return absent;
  const auto found = object.find(name);
  return found == object.end() ? absent : *found;
}

inline std::string string_of(const json& object, const char* name) {
  const auto& member = member_of(object, name);
  return member.is_string() ? member.get<std::string>() : std::string();
}

inline std::int64_t integer_of(const json& object, const char* name) {
  const auto& member = member_of(object, name);
  return member.is_number() ? member.get<std::int64_t>() : 0;
}

inline bool boolean_of(const json& object, const char* name) {
  const auto& member = member_of(object, name);
  return member.is_boolean() && member.get<bool>();
}

//================================================================================================
// [05] options - what the operator decides
// uses: text, log | pure
//================================================================================================

/// How `claude` reaches a model.
enum class auth_method { detect, cli, api_key, bedrock, vertex };

inline std::string_view name_of(auth_method method) {
  switch (method) {
    case auth_method::detect: return "detect";
    case auth_method::cli: return "cli";
    case auth_method::api_key: return "api_key";
    case auth_method::bedrock: return "bedrock";
    case auth_method::vertex: return "vertex";
  }
  return "detect";
}

/// Accepts the reference wrapper's names too: `claude_cli`, `anthropic`.
inline std::optional<auth_method> try_auth_method(std::string_view name) {
  const auto lower = text::to_lower(text::trim(name));
  if (lower == "cli" || lower == "claude_cli") return auth_method::cli;
  if (lower == "api_key" || lower == "anthropic") return auth_method::api_key;
  if (lower == "bedrock") return auth_method::bedrock;
  if (lower == "vertex") return auth_method::vertex;
  if (lower.empty() || lower == "detect") return auth_method::detect;
  return std::nullopt;
}

using environment_map = std::map<std::string, std::string>;

/// The environment of this process, for `options::environment`.
inline environment_map current_environment() {
  environment_map variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view line(*entry);
    const auto equals = line.find('=');
    if (equals == std::string_view::npos) continue;
    variables.emplace(line.substr(0, equals), line.substr(equals + 1));
  }
  return variables;
}

inline std::string value_or(const environment_map& variables, const char* name,
                            std::string fallback = {}) {
  const auto found = variables.find(name);
  return found == variables.end() || found->second.empty() ? std::move(fallback) : found->second;
}

/// Everything that can be set; plain data. `validate` tells what is wrong with it.
struct options {
  std::string host = "127.0.0.1";
  int port = 8000;             ///< 0: any free port
  bool port_required = false;  ///< false: a busy port gives way to one of the next ten
  auth_method auth = auth_method::detect;
  std::string claude_path;        ///< empty: `claude` on the environment's PATH
  std::string working_directory;  ///< empty: a private temporary one, removed at the end
  std::string default_model = "sonnet";  ///< an alias never goes stale
  std::vector<std::string> api_keys;  ///< empty: open, on loopback only
  int spares = 2;                     ///< processes kept ready
  int max_processes = 0;              ///< 0: from the machine's memory
  int max_queue = 64;                 ///< requests that may wait for a process
  std::size_t max_body_bytes = 10 * 1024 * 1024;
  int max_connections = 1024;
  std::chrono::milliseconds timeout{600'000};          ///< of one request, from start to end
  std::chrono::milliseconds queue_timeout{60'000};     ///< longest wait for a process
  std::chrono::milliseconds idle_timeout{600'000};  ///< of a conversation's process; 0: none stays
  std::chrono::milliseconds session_ttl{3'600'000};    ///< of a session nobody uses
  std::string session_directory;  ///< where sessions survive a restart; empty: in memory alone
  std::chrono::milliseconds keep_alive_interval{15'000};  ///< of silence in a stream
  std::chrono::milliseconds stop_grace{500};  ///< between SIGTERM and SIGKILL of a `claude`
  std::chrono::milliseconds drain_timeout{30'000};  ///< for running requests, after `stop`
  environment_map environment;  ///< what `claude` may inherit from; see `child_environment`
  logger log;
};

/// `90s`, `10m`, `2h`, `500ms` or plain seconds; nullopt when it is none of them.
inline std::optional<std::chrono::milliseconds> try_duration(std::string_view value) {
  const auto digits = std::min(value.find_first_not_of("0123456789"), value.size());
  const auto number = text::try_number<std::int64_t>(value.substr(0, digits));
  const auto unit = value.substr(digits);
  if (!number || *number > 1'000'000'000) return std::nullopt;
  if (unit == "ms") return std::chrono::milliseconds(*number);
  if (unit.empty() || unit == "s") return std::chrono::seconds(*number);
  if (unit == "m") return std::chrono::minutes(*number);
  if (unit == "h") return std::chrono::hours(*number);
  return std::nullopt;
}

inline bool is_ip_literal(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> address{};
  return ::inet_pton(AF_INET, host.c_str(), address.data()) == 1 ||
         ::inet_pton(AF_INET6, host.c_str(), address.data()) == 1;
}

/// `127.evil.example` is none: only addresses and the reserved name are (RFC 6761).
inline bool is_loopback_name(const std::string& host) {
  if (!is_ip_literal(host)) return host == "localhost";
  return host == "::1" || text::starts_with(host, "127.");
}

/// One sentence per problem; empty when the options can be run with.
inline std::vector<std::string> validate(const options& settings) {
  std::vector<std::string> problems;
  const auto require = [&](bool holds, const char* problem) {
    if (!holds) problems.emplace_back(problem);
  };
  require(settings.port >= 0 && settings.port <= 65535, "the port must be between 0 and 65535");
  require(!settings.host.empty(), "the host must not be empty");
  require(settings.timeout.count() > 0, "the timeout must be longer than nothing");
  require(settings.spares >= 0 && settings.spares <= 64, "spares must be between 0 and 64");
  require(settings.max_processes >= 0 && settings.max_processes <= 1024,
          "max-processes must be between 1 and 1024, or 0 for as many as the memory allows");
  require(settings.max_body_bytes > 0, "the largest request size must be more than nothing");
  require(settings.max_connections > 0, "max-connections must be more than nothing");
  require(!settings.default_model.empty(), "the model must not be empty");
  require(!text::starts_with(settings.default_model, "-"), "the model must not begin with '-'");
  for (const auto& key : settings.api_keys) {
    require(!key.empty() && text::trim(key).size() == key.size(),
            "an API key must not be empty nor begin or end with a blank");
  }
  return problems;
}

//================================================================================================
// [06] conversation - one request in neutral form, whatever API it came by
// uses: text, errors, json_access | pure
//================================================================================================

enum class role { user, assistant };

struct text_part {
  std::string text;
};

/// The model asked for a tool of the client's.
struct tool_call_part {
  std::string id;
  std::string name;
  json input;
};

/// The client's answer to a tool call.
struct tool_result_part {
  std::string call_id;
  std::string text;
};

using content_part = std::variant<text_part, tool_call_part, tool_result_part>;

struct message {
  role author = role::user;
  std::vector<content_part> parts;
};

/// Everything that a process was told and has said, as one string: two conversations are the same
/// if and only if their traces are. Compared whole, never by hash alone, so that no conversation
/// can be taken for another.
struct conversation_trace {
  std::string words;
  std::vector<std::size_t> replies;  ///< length of `words` after each assistant message
};

/// Length and bytes, so that no content can look like a border.
inline void append_field(std::string& words, char kind, std::string_view bytes) {
  words.append(1, kind).append(std::to_string(bytes.size())).append(1, ':').append(bytes);
}

/// An assistant's texts count as one, without blanks at the ends: clients join and trim them.
inline void append_message(conversation_trace& trace, const message& said) {
  std::string reply;
  for (const auto& part : said.parts) {
    if (const auto* words = std::get_if<text_part>(&part)) {
      if (said.author == role::user) append_field(trace.words, 'u', words->text);
      if (said.author == role::assistant) reply += words->text;
    } else if (const auto* call = std::get_if<tool_call_part>(&part)) {
      append_field(trace.words, 'c', call->id);
      append_field(trace.words, 'n', call->name);
      append_field(trace.words, 'i', dump(call->input));
    } else if (const auto* result = std::get_if<tool_result_part>(&part)) {
      append_field(trace.words, 'r', result->call_id);
      append_field(trace.words, 't', result->text);
    }
  }
  if (said.author == role::user) return;
  append_field(trace.words, 'a', text::trim(reply));
  trace.replies.push_back(trace.words.size());
}

/// What a client asks for. Messages alternate between user and assistant, and the user speaks
/// first and last: `normalize` sees to it.
struct turn_request {
  std::string client;   ///< who asks: one client's conversations are never another's
  std::string session;  ///< id of the session that holds the history; empty: none
  std::string model;    ///< empty: the operator's default
  std::string system;   ///< empty: none
  std::vector<message> messages;
  bool stream = false;
  std::vector<std::string> ignored_params;  ///< known fields that are not honoured, by name
};

/// What the user says where a client's history ends with the assistant or says nothing at all
/// (a "continue" button): the CLI has no prefill, a turn always begins with the user.
constexpr std::string_view continue_prompt = "Please continue.";

/// What the user says before a history that begins with the assistant (a bot's greeting): the
/// Messages API wants the user first.
constexpr std::string_view opening_prompt = "Hello.";

/// Joins neighbours of one role and drops empty messages, as the Messages API wants them, and
/// makes sure that the user speaks first and last.
inline void normalize(std::vector<message>& messages) {
  std::vector<message> joined;
  for (auto& next : messages) {
    if (next.parts.empty()) continue;
    if (joined.empty() && next.author == role::assistant) {
      joined.push_back({role::user, {text_part{std::string(opening_prompt)}}});
    }
    if (joined.empty() || joined.back().author != next.author) {
      joined.push_back(std::move(next));
      continue;
    }
    auto& parts = joined.back().parts;
    std::move(next.parts.begin(), next.parts.end(), std::back_inserter(parts));
  }
  if (joined.empty() || joined.back().author != role::user) {
    joined.push_back({role::user, {text_part{std::string(continue_prompt)}}});
  }
  messages = std::move(joined);
}

/// The trace of a request: who asks whom with what instructions, and what was said before.
inline conversation_trace make_trace(const turn_request& request) {
  conversation_trace trace;
  append_field(trace.words, 'k', request.client);
  append_field(trace.words, 'm', request.model);
  append_field(trace.words, 's', request.system);
  for (const auto& said : request.messages) append_message(trace, said);
  return trace;
}

/// Ids of sessions are free text: up to 256 characters, none of them a control character.
inline std::string parse_session_id(const reader& field) {
  const auto& id = field.string();
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; };
  const auto begins_character = [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
  };
  const auto characters = std::count_if(id.begin(), id.end(), begins_character);
  if (characters < 1 || characters > 256) field.fail("must be 1 to 256 characters long");
  if (std::any_of(id.begin(), id.end(), is_control)) field.fail("holds a control character");
  return id;
}

/// A model id goes to the CLI as an argument: it must not look like a flag.
inline std::string parse_model(const reader& field) {
  const auto& model = field.string();
  const auto printable = [](char c) { return c > ' ' && c < '\x7f'; };
  if (model.size() > 256) field.fail("must be at most 256 characters long");
  if (text::starts_with(model, "-") || !std::all_of(model.begin(), model.end(), printable)) {
    field.fail("is not a model id");
  }
  return model;
}

//================================================================================================
// [07] events - one answer in neutral form, as it comes
// uses: errors, json_access | pure
//================================================================================================
//
// The grammar, which every decoder keeps and every dialect relies on:
//
//   turn  := turn_started block* ( turn_stopped | turn_failed )   turn_failed may come at any time
//   block := block_started(i) block_delta(i)* block_stopped(i)     i = 0, 1, 2, never interleaved

enum class block_kind { text, thinking, tool_call };

/// Why the model stopped; the Messages API's names.
enum class stop_reason { end_turn, max_tokens, stop_sequence, tool_use, refusal };

/// Tokens as the API counts them: the four kinds of input do not overlap.
struct token_usage {
  std::int64_t input = 0;
  std::int64_t cache_read = 0;
  std::int64_t cache_write = 0;  ///< both lifetimes together
  std::int64_t cache_write_5m = 0;
  std::int64_t cache_write_1h = 0;
  std::int64_t output = 0;
  std::optional<double> cost_usd;  ///< unknown when an answer was cut before the CLI told it

  std::int64_t prompt() const { return input + cache_read + cache_write; }
};

struct turn_started {
  std::string model;  ///< the id that the API resolved to
  token_usage usage;
};

struct block_started {
  std::size_t index = 0;
  block_kind kind = block_kind::text;
  std::string id;    ///< of a tool call
  std::string name;  ///< of a tool call
};

struct block_delta {
  std::size_t index = 0;
  std::string text;  ///< more text, more thinking, or more of a tool call's JSON
};

struct block_stopped {
  std::size_t index = 0;
  std::string signature;  ///< of thinking
};

struct turn_stopped {
  stop_reason reason = stop_reason::end_turn;
  std::string stop_sequence;
  token_usage usage;
};

struct turn_failed {
  api_error error;
};

using event = std::variant<turn_started, block_started, block_delta, block_stopped, turn_stopped,
                           turn_failed>;

inline bool ends_turn(const event& what) {
  return std::holds_alternative<turn_stopped>(what) || std::holds_alternative<turn_failed>(what);
}

template <class... Lambdas>
struct overloaded : Lambdas... {
  using Lambdas::operator()...;
};
template <class... Lambdas>
overloaded(Lambdas...) -> overloaded<Lambdas...>;

/// A whole answer, for clients that do not stream.
struct turn_result {
  struct block {
    block_kind kind = block_kind::text;
    std::string text;
    std::string id;
    std::string name;
    std::string signature;
  };

  std::string model;
  std::vector<block> blocks;
  stop_reason reason = stop_reason::end_turn;
  std::string stop_sequence;
  token_usage usage;
};

/// Gathers the events of one turn. Throws the turn's error, as a parser would.
class collector {
 public:
  void add(const event& what) {
    std::visit(overloaded{
                   [&](const turn_started& e) { result_.model = e.model; },
                   [&](const block_started& e) {
                     result_.blocks.push_back({e.kind, {}, e.id, e.name, {}});
                   },
                   [&](const block_delta& e) { result_.blocks.at(e.index).text += e.text; },
                   [&](const block_stopped& e) {
                     result_.blocks.at(e.index).signature = e.signature;
                   },
                   [&](const turn_stopped& e) {
                     result_.reason = e.reason;
                     result_.stop_sequence = e.stop_sequence;
                     result_.usage = e.usage;
                   },
                   [&](const turn_failed& e) { throw e.error; },
               },
               what);
  }

  const turn_result& result() const { return result_; }

 private:
  turn_result result_;
};

//================================================================================================
// [08] sse - server-sent events, and what a dialect has to offer
// uses: errors, json_access, conversation, events | pure
//================================================================================================

/// One `data:` event (https://html.spec.whatwg.org/multipage/server-sent-events.html).
inline std::string sse_data(std::string_view payload) {
  std::string frame("data: ");
  frame.append(payload).append("\n\n");
  return frame;
}

/// What an answer needs that is in no event.
struct reply_context {
  std::string id;            ///< random part of the answer's id
  std::int64_t created = 0;  ///< unix seconds
};

/// Writes the answer to one request in one dialect: whole, or event by event. Owned by the
/// request that it answers; used by one thread.
class reply {
 public:
  virtual ~reply() = default;

  /// Appends the bytes that tell one event to a client that streams.
  virtual void write(const event& what, std::string& out) = 0;

  /// Appends what resets an idle client's clock and changes nothing.
  virtual void write_keep_alive(std::string& out) = 0;

  /// The body for a client that does not stream.
  virtual std::string render(const turn_result& result) const = 0;

 protected:
  reply() = default;
  reply(const reply&) = default;
  reply& operator=(const reply&) = default;
};

/// A request, and how to answer it.
struct parsed_request {
  turn_request turn;
  std::unique_ptr<claude_openai::reply> reply;
};

/// One dialect: a row of the route table.
struct surface {
  std::string_view name;
  parsed_request (*parse)(const json& body, const reply_context& context);
  std::string (*render_error)(const api_error& error);
};

//================================================================================================
// [09] openai_chat - chat completions: parses requests, writes answers
// uses: text, errors, json_access, conversation, events, sse | pure
//================================================================================================
//
// https://platform.openai.com/docs/api-reference/chat

namespace openai_chat {

/// `{"error":{message,type,param,code}}`: the SDKs raise by status and show these.
inline std::string render_error(const api_error& error) {
  const auto [type, default_code] = [&]() -> std::pair<const char*, const char*> {
    switch (error.kind) {
      case error_kind::invalid_request: return {"invalid_request_error", ""};
      case error_kind::authentication: return {"authentication_error", "invalid_api_key"};
      case error_kind::permission: return {"permission_error", ""};
      case error_kind::not_found: return {"not_found_error", "not_found"};
      case error_kind::method_not_allowed: return {"invalid_request_error", "method_not_allowed"};
      case error_kind::too_large: return {"invalid_request_error", "request_too_large"};
      case error_kind::rate_limited: return {"rate_limit_error", "rate_limit_exceeded"};
      case error_kind::internal: return {"server_error", "internal_error"};
      case error_kind::upstream_failed: return {"server_error", "upstream_error"};
      case error_kind::bad_gateway: return {"server_error", "bad_gateway"};
      case error_kind::unavailable: return {"server_error", "unavailable"};
      case error_kind::overloaded: return {"server_error", "overloaded"};
      case error_kind::timed_out: return {"server_error", "timeout"};
    }
    return {"server_error", ""};
  }();
  const std::string code = error.code.empty() ? default_code : error.code;
  const json body = json::object({{"message", error.message},
                                  {"type", type},
                                  {"param", error.param.empty() ? json() : json(error.param)},
                                  {"code", code.empty() ? json() : json(code)}});
  return dump(json::object({{"error", body}}));
}

inline const char* finish_reason(stop_reason reason) {
  switch (reason) {
    case stop_reason::end_turn:
    case stop_reason::stop_sequence: return "stop";
    case stop_reason::max_tokens: return "length";
    case stop_reason::tool_use: return "tool_calls";
    case stop_reason::refusal: return "content_filter";
  }
  return "stop";
}

/// OpenAI's counts, and beside them the API's own cache counts and the cost, under the names that
/// clients of several providers look for.
inline json render_usage(const token_usage& usage) {
  json rendered = json::object(
      {{"prompt_tokens", usage.prompt()},
       {"completion_tokens", usage.output},
       {"total_tokens", usage.prompt() + usage.output},
       {"prompt_tokens_details", json::object({{"cached_tokens", usage.cache_read},
                                               {"cache_write_tokens", usage.cache_write}})},
       {"cache_read_input_tokens", usage.cache_read},
       {"cache_creation_input_tokens", usage.cache_write},
       {"cache_creation", json::object({{"ephemeral_5m_input_tokens", usage.cache_write_5m},
                                        {"ephemeral_1h_input_tokens", usage.cache_write_1h}})}});
  if (usage.cost_usd) rendered["cost"] = *usage.cost_usd;
  return rendered;
}

/// Writes `chat.completion` and `chat.completion.chunk` objects.
class chat_reply final : public reply {
 public:
  chat_reply(const reply_context& context, bool include_usage)
      : id_("chatcmpl-" + context.id), created_(context.created), include_usage_(include_usage) {}

  void write(const event& what, std::string& out) override {
    std::visit(overloaded{
                   [&](const turn_started& e) { write_start(e, out); },
                   [&](const block_started& e) { kind_ = e.kind; },
                   [&](const block_delta& e) { write_delta(e, out); },
                   [](const block_stopped&) {},
                   [&](const turn_stopped& e) { write_stop(e, out); },
                   [&](const turn_failed& e) {
                     out += sse_data(render_error(e.error)) + sse_data("[DONE]");
                   },
               },
               what);
  }

  void write_keep_alive(std::string& out) override { out += ": keep-alive\n\n"; }

  std::string render(const turn_result& result) const override {
    std::string content;
    for (const auto& block : result.blocks) {
      if (block.kind == block_kind::text) content += block.text;
    }
    const json said = json::object({{"role", "assistant"},
                                    {"content", content},
                                    {"refusal", json()},
                                    {"annotations", json::array()}});
    const json choice = json::object({{"index", 0},
                                      {"message", said},
                                      {"logprobs", json()},
                                      {"finish_reason", finish_reason(result.reason)}});
    json whole = head("chat.completion", result.model);
    whole["choices"] = json::array({choice});
    whole["usage"] = render_usage(result.usage);
    return dump(whole);
  }

 private:
  json head(const char* object, const std::string& model) const {
    return json::object({{"id", id_},
                         {"object", object},
                         {"created", created_},
                         {"model", model},
                         {"system_fingerprint", json()}});
  }

  /// Everything before the delta is the same in all chunks, so it is written once.
  void write_start(const turn_started& started, std::string& out) {
    chunk_head_ = dump(head("chat.completion.chunk", started.model));
    chunk_head_.back() = ',';
    write_choice(R"({"role":"assistant","content":""})", "null", out);
  }

  void write_delta(const block_delta& delta, std::string& out) const {
    if (kind_ == block_kind::text) {
      write_choice(R"({"content":)" + dump(json(delta.text)) + "}", "null", out);
    }
  }

  void write_stop(const turn_stopped& stopped, std::string& out) const {
    write_choice("{}", '"' + std::string(finish_reason(stopped.reason)) + '"', out);
    if (include_usage_) {
      out += sse_data(chunk_head_ + R"("choices":[],"usage":)" +
                      dump(render_usage(stopped.usage)) + "}");
    }
    out += sse_data("[DONE]");
  }

  void write_choice(const std::string& delta, const std::string& reason, std::string& out) const {
    out += sse_data(chunk_head_ + R"("choices":[{"index":0,"delta":)" + delta +
                    R"(,"logprobs":null,"finish_reason":)" + reason + "}]}");
  }

  std::string id_;
  std::int64_t created_;
  bool include_usage_;
  std::string chunk_head_;
  block_kind kind_ = block_kind::text;
};

/// A field that is known and checked, but not honoured yet. `neutral` is the JSON value that asks
/// for nothing, so that it need not be reported.
struct ignored_field {
  enum class shape { number, integer, boolean, any };
  const char* name;
  shape kind;
  double low;
  double high;
  const char* neutral;
};

constexpr std::array<ignored_field, 27> ignored_fields = {{
    {"temperature", ignored_field::shape::number, 0, 2, "1"},
    {"top_p", ignored_field::shape::number, 0, 1, "1"},
    {"presence_penalty", ignored_field::shape::number, -2, 2, "0"},
    {"frequency_penalty", ignored_field::shape::number, -2, 2, "0"},
    {"max_tokens", ignored_field::shape::integer, 1, 1e9, ""},
    {"max_completion_tokens", ignored_field::shape::integer, 1, 1e9, ""},
    {"n", ignored_field::shape::integer, 1, 128, "1"},
    {"seed", ignored_field::shape::integer, -9.2e18, 9.2e18, ""},
    {"top_logprobs", ignored_field::shape::integer, 0, 20, "0"},
    {"logprobs", ignored_field::shape::boolean, 0, 0, "false"},
    {"parallel_tool_calls", ignored_field::shape::boolean, 0, 0, "true"},
    {"enable_tools", ignored_field::shape::boolean, 0, 0, "false"},
    {"stop", ignored_field::shape::any, 0, 0, "[]"},
    {"tools", ignored_field::shape::any, 0, 0, "[]"},
    {"tool_choice", ignored_field::shape::any, 0, 0, R"("none")"},
    {"functions", ignored_field::shape::any, 0, 0, "[]"},
    {"function_call", ignored_field::shape::any, 0, 0, R"("none")"},
    {"response_format", ignored_field::shape::any, 0, 0, R"({"type":"text"})"},
    {"logit_bias", ignored_field::shape::any, 0, 0, "{}"},
    {"reasoning_effort", ignored_field::shape::any, 0, 0, R"("none")"},
    {"modalities", ignored_field::shape::any, 0, 0, R"(["text"])"},
    {"audio", ignored_field::shape::any, 0, 0, ""},
    {"prediction", ignored_field::shape::any, 0, 0, ""},
    {"verbosity", ignored_field::shape::any, 0, 0, ""},
    {"web_search_options", ignored_field::shape::any, 0, 0, ""},
    {"service_tier", ignored_field::shape::any, 0, 0, R"("auto")"},
    {"store", ignored_field::shape::boolean, 0, 0, "false"},
}};

/// True when the field asks for something that the answer will not show.
inline bool check_ignored(const ignored_field& field, const reader& value) {
  switch (field.kind) {
    case ignored_field::shape::number: value.number(field.low, field.high); break;
    case ignored_field::shape::integer:
      value.integer(static_cast<std::int64_t>(field.low), static_cast<std::int64_t>(field.high));
      break;
    case ignored_field::shape::boolean: value.boolean(); break;
    case ignored_field::shape::any: break;
  }
  return *field.neutral == '\0' || value.value() != json::parse(field.neutral);
}

/// A string, or the texts of an array of text parts; nothing when absent or null.
inline std::vector<std::string> parse_texts(const reader& message) {
  const auto content = message.find("content");
  if (!content) return {};
  if (content->is_string()) return {content->string()};
  if (!content->is_array()) content->fail("must be a string or an array of content parts");
  std::vector<std::string> texts;
  for (const auto& part : content->elements()) {
    const auto type = part.require("type");
    if (type.string() == "text") {
      texts.push_back(part.require("text").string());
    } else if (type.string() == "refusal") {
      texts.push_back(part.require("refusal").string());
    } else {
      type.fail("'" + type.string() + "' is not supported; only text parts are");
    }
  }
  return texts;
}

inline tool_call_part parse_tool_call(const reader& call) {
  const auto function = call.require("function");
  const auto arguments = function.require("arguments");
  check_json_bounds(arguments.string());
  tool_call_part part{call.require("id").string(), function.require("name").string(),
                      json::parse(arguments.string(), nullptr, false)};
  if (arguments.string().empty()) part.input = json::object();
  if (!part.input.is_object()) arguments.fail("must be the JSON text of an object");
  return part;
}

/// Adds one message; instructions (system, developer) go to the system prompt in order.
inline void parse_message(const reader& source, turn_request& request) {
  const auto name = source.require("role");
  const auto texts = parse_texts(source);
  message said;
  if (name.string() == "system" || name.string() == "developer") {
    for (const auto& text : texts) {
      if (!request.system.empty() && !text.empty()) request.system += '\n';
      request.system += text;
    }
    return;
  }
  if (name.string() == "tool") {
    const std::string call_id = source.require("tool_call_id").string();
    said.parts.emplace_back(tool_result_part{call_id, text::join(texts, "\n")});
  } else if (name.string() == "user" || name.string() == "assistant") {
    for (const auto& text : texts) {
      if (!text.empty()) said.parts.emplace_back(text_part{text});
    }
  } else {
    name.fail("must be system, developer, user, assistant or tool");
  }
  if (name.string() == "assistant") {
    said.author = role::assistant;
    if (const auto calls = source.find("tool_calls")) {
      for (const auto& call : calls->elements()) said.parts.emplace_back(parse_tool_call(call));
    }
  }
  request.messages.push_back(std::move(said));
}

/// Chat completion request to neutral request. Unknown fields are accepted: clients send many.
inline parsed_request parse(const json& body, const reply_context& context) {
  const reader root(body);
  parsed_request parsed;
  auto& turn = parsed.turn;
  const auto messages = root.require("messages");
  const auto all = messages.elements();
  if (all.empty()) messages.fail("must hold at least one message");
  for (const auto& element : all) parse_message(element, turn);
  if (all.back().require("role").string() == "user" && turn.messages.back().parts.empty()) {
    throw bad_field(all.back().path() + ".content", "must not be empty in the last message");
  }
  normalize(turn.messages);
  if (const auto model = root.find("model")) turn.model = parse_model(*model);
  if (const auto session = root.find("session_id")) turn.session = parse_session_id(*session);
  if (const auto stream = root.find("stream")) turn.stream = stream->boolean();
  bool include_usage = false;
  if (const auto stream_options = root.find("stream_options")) {
    const auto wanted = stream_options->find("include_usage");
    include_usage = wanted && wanted->boolean();
  }
  for (const auto& field : ignored_fields) {
    const auto value = root.find(field.name);
    if (value && check_ignored(field, *value)) turn.ignored_params.emplace_back(field.name);
  }
  parsed.reply = std::make_unique<chat_reply>(context, include_usage);
  return parsed;
}

constexpr surface dialect{"openai_chat", parse, render_error};

}  // namespace openai_chat

//================================================================================================
// [10] catalog - the models a client may name
// uses: text, json_access | pure
//================================================================================================

/// One row of the model list.
struct model_entry {
  std::string id;
  std::int64_t created = 0;  ///< unix seconds; from the date in the id, else 0
};

/// Ids that the reference wrapper's README names; clients are configured with them.
constexpr std::array<std::string_view, 12> well_known_models = {
    "claude-opus-4-5-20251101",   "claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001",
    "claude-opus-4-1-20250805",   "claude-opus-4-20250514",     "claude-sonnet-4-20250514",
    "claude-opus-4-5-20250929",   "claude-3-7-sonnet-20250219", "claude-3-5-sonnet-20241022",
    "claude-3-5-haiku-20241022",  "sonnet",                     "haiku"};

/// `…-20250929` to unix seconds at midnight UTC.
inline std::int64_t release_time(std::string_view id) {
  const auto dash = id.rfind('-');
  if (dash == std::string_view::npos || id.size() - dash != 9) return 0;
  const auto date = text::try_number<int>(id.substr(dash + 1));
  if (!date) return 0;
  std::tm day{};
  day.tm_year = *date / 10000 - 1900;
  day.tm_mon = *date / 100 % 100 - 1;
  day.tm_mday = *date % 100;
  return static_cast<std::int64_t>(timegm(&day));
}

/// The operator's default, what the CLI reports, and the well-known ids; each once, in that order.
inline std::vector<model_entry> make_catalog(const std::string& default_model,
                                             const std::vector<std::string>& reported) {
  std::vector<std::string> ids{default_model};
  ids.insert(ids.end(), reported.begin(), reported.end());
  ids.insert(ids.end(), well_known_models.begin(), well_known_models.end());
  std::vector<model_entry> catalog;
  for (const auto& id : ids) {
    const auto same = [&](const model_entry& entry) { return entry.id == id; };
    if (std::none_of(catalog.begin(), catalog.end(), same)) {
      catalog.push_back({id, release_time(id)});
    }
  }
  return catalog;
}

inline json render_model(const model_entry& entry) {
  return json::object({{"id", entry.id},
                       {"object", "model"},
                       {"created", entry.created},
                       {"owned_by", "anthropic"}});
}

inline json render_models(const std::vector<model_entry>& catalog) {
  json rows = json::array();
  for (const auto& entry : catalog) rows.push_back(render_model(entry));
  return json::object({{"object", "list"}, {"data", rows}});
}

//================================================================================================
// [11] cli_protocol - the lines that `claude` reads and writes (stream-json)
// uses: text, errors, json_access, conversation, events | pure
//================================================================================================
//
// One JSON object per line each way. Seen on the real CLI, 2.1.120 to 2.1.330; the transcripts in
// tests/golden are its own words.

/// Cuts a stream of bytes into lines. Bounded: a line over the limit overflows it for good.
class line_splitter {
 public:
  explicit line_splitter(std::size_t max_line_bytes = 64 * 1024 * 1024) : max_(max_line_bytes) {}

  void feed(std::string_view bytes) {
    if (taken_ > 0) buffer_.erase(0, taken_);
    searched_ -= taken_;
    taken_ = 0;
    buffer_ += bytes;
  }

  /// The next whole line without its end, valid until the next `feed`.
  std::optional<std::string_view> next() {
    const auto end = buffer_.find('\n', searched_);
    searched_ = end == std::string::npos ? buffer_.size() : end + 1;
    if (end == std::string::npos) return std::nullopt;
    const auto line = std::string_view(buffer_).substr(taken_, end - taken_);
    taken_ = end + 1;
    return line;
  }

  bool overflowed() const { return buffer_.size() - taken_ > max_; }

 private:
  std::size_t max_;
  std::string buffer_;
  std::size_t taken_ = 0;     ///< bytes already given out as lines
  std::size_t searched_ = 0;  ///< bytes known to hold no further line end
};

/// What the API said of a failure, out of the CLI's wording of it: `API Error: 400 {…}`,
/// `API Error: Request rejected (429) · …`, `Failed to authenticate. API Error: 403 …`.
inline std::string upstream_message(std::string_view told) {
  if (const auto brace = told.find('{'); brace != std::string_view::npos) {
    const json body = json::parse(told.substr(brace), nullptr, false);
    auto inner = string_of(member_of(body, "error"), "message");
    if (!inner.empty()) return inner;
  }
  constexpr std::string_view mark = "API Error: ";
  if (const auto at = told.find(mark); at != std::string_view::npos) {
    told.remove_prefix(at + mark.size());
  }
  if (text::starts_with(told, "Request rejected (")) {
    constexpr std::string_view dot = "\xC2\xB7 ";
    if (const auto at = told.find(dot); at != std::string_view::npos) {
      told.remove_prefix(at + dot.size());
    }
  }
  const auto status_end = told.find(' ');
  if (status_end == 3 && text::try_number<int>(told.substr(0, 3))) told.remove_prefix(4);
  // What the CLI advises its own users, at the end of what the API said.
  constexpr std::array<std::string_view, 4> advices = {
      ". This is a server-side issue", " Run --model", " \xC2\xB7 Fix external API key",
      " Check the gateway"};
  for (const auto advice : advices) told = told.substr(0, told.find(advice));
  return std::string(told);
}

/// The API's status to the kind that tells it to a client.
inline error_kind kind_of_upstream_status(std::int64_t status) {
  switch (status) {
    case 400:
    case 422: return error_kind::invalid_request;
    case 401: return error_kind::authentication;
    case 403: return error_kind::permission;
    case 404: return error_kind::not_found;
    case 413: return error_kind::too_large;
    case 429: return error_kind::rate_limited;
    case 503:
    case 529: return error_kind::overloaded;
    case 408:
    case 504: return error_kind::timed_out;
    default: return status >= 500 ? error_kind::upstream_failed : error_kind::bad_gateway;
  }
}

inline api_error upstream_error(std::int64_t status, std::string_view told) {
  if (told.find("/login") != std::string_view::npos && status == 0) {
    api_error error(error_kind::unavailable,
                    "claude is not logged in; run `claude auth login` as the user of this proxy, "
                    "or start the proxy with ANTHROPIC_API_KEY set");
    error.code = "not_logged_in";
    error.retry_is_futile = true;
    return error;
  }
  const auto message = upstream_message(told);
  api_error error(kind_of_upstream_status(status),
                  message.empty() ? "the API failed without a message" : message);
  if (error.kind == error_kind::authentication) {
    error.message = "the API refused this proxy's own credentials: " + error.message;
    error.code = "upstream_authentication_failed";
  }
  if (error.kind == error_kind::not_found) error.code = "model_not_found";
  return error;
}

inline void read_usage(const json& source, token_usage& usage) {
  const auto take = [&](const json& object, const char* name, std::int64_t& count) {
    if (member_of(object, name).is_number()) count = integer_of(object, name);
  };
  take(source, "input_tokens", usage.input);
  take(source, "output_tokens", usage.output);
  take(source, "cache_read_input_tokens", usage.cache_read);
  take(source, "cache_creation_input_tokens", usage.cache_write);
  const auto& lifetimes = member_of(source, "cache_creation");
  take(lifetimes, "ephemeral_5m_input_tokens", usage.cache_write_5m);
  take(lifetimes, "ephemeral_1h_input_tokens", usage.cache_write_1h);
}

inline void add_usage(token_usage& sum, const token_usage& more) {
  sum.input += more.input;
  sum.output += more.output;
  sum.cache_read += more.cache_read;
  sum.cache_write += more.cache_write;
  sum.cache_write_5m += more.cache_write_5m;
  sum.cache_write_1h += more.cache_write_1h;
}

/// Lines of one turn to events. Never throws; keeps the grammar whatever the lines say.
///
/// The CLI starts a broken API call again by itself: the new attempt's blocks are matched with
/// what was already told, and only what is new is told. When they differ, nothing honest is left
/// but to fail. A block is told as stopped when the next one starts or its message is complete,
/// since a broken attempt's blocks "stop" too.
class turn_decoder {
 public:
  using events = std::vector<event>;

  /// The CLI tells what its process has cost so far, in USD: what it cost before is no turn's.
  explicit turn_decoder(double cost_before = 0) : cost_before_(cost_before), cost_(cost_before) {}

  /// What the process has cost so far.
  double cost() const { return cost_; }

  /// True once the turn has ended; later lines mean nothing.
  bool finished() const { return finished_; }

  /// True when the turn was ended before the CLI ended it: the CLI would call the API again (to go
  /// on after max_tokens, to argue with a refusal, to ask for words after an empty answer), so its
  /// process must not live on.
  bool was_cut() const { return cut_; }

  void decode(const json& line, events& out) {
    if (finished_ || !member_of(line, "parent_tool_use_id").is_null()) return;
    const auto type = string_of(line, "type");
    if (type == "stream_event") decode_stream_event(member_of(line, "event"), out);
    if (type == "assistant") decode_assistant(line, out);
    if (type == "result") decode_result(line, out);
    if (type == "system" && string_of(line, "subtype") == "api_retry") decode_retry(line, out);
  }

  /// Ends the turn from outside: the process died, or a line was no JSON.
  void fail(api_error error, events& out) {
    if (finished_) return;
    finished_ = true;
    out.emplace_back(turn_failed{std::move(error)});
  }

 private:
  struct told_block {
    block_kind kind = block_kind::text;
    std::string text;
    std::string signature;
  };

  /// A retry further away than this is the client's to make, since it knows how long it may wait.
  static constexpr std::int64_t longest_retry_ms = 5'000;

  void decode_stream_event(const json& said, events& out) {
    const auto type = string_of(said, "type");
    if (type == "message_start") begin_message(member_of(said, "message"), true, out);
    const bool starts = type == "content_block_start";
    if (starts || type == "content_block_delta") {
      if (starts) ++api_index_;
      if (integer_of(said, "index") != api_index_) return fail_disordered(out);
      if (starts) return begin_block(member_of(said, "content_block"), out);
      decode_delta(member_of(said, "delta"), out);
    }
    if (type == "message_delta") {
      read_usage(member_of(said, "usage"), message_usage_);
      const auto& delta = member_of(said, "delta");
      const auto reason = string_of(delta, "stop_reason");  // null when the CLI was interrupted
      if (!reason.empty()) end_message(reason, string_of(delta, "stop_sequence"), out);
    }
  }

  void decode_delta(const json& delta, events& out) {
    const auto type = string_of(delta, "type");
    if (type == "text_delta") add_text(block_kind::text, string_of(delta, "text"), out);
    if (type == "thinking_delta") add_text(block_kind::thinking, string_of(delta, "thinking"), out);
    if (type == "input_json_delta") {
      add_text(block_kind::tool_call, string_of(delta, "partial_json"), out);
    }
    if (type == "signature_delta" && incoming_) {
      told_[*incoming_].signature = string_of(delta, "signature");
    }
  }

  /// Whole blocks: told already when they were streamed; else this line is all that comes.
  void decode_assistant(const json& line, events& out) {
    const auto& message = member_of(line, "message");
    if (string_of(message, "model") == "<synthetic>") return;
    const auto id = string_of(message, "id");
    if (id == message_id_ && streamed_) return;
    if (id != message_id_) begin_message(message, false, out);
    read_usage(member_of(message, "usage"), message_usage_);
    const auto& content = member_of(message, "content");
    if (!content.is_array()) return;
    for (const auto& block : content) {
      begin_block(block, out);
      add_text(block_kind::text, string_of(block, "text"), out);
      add_text(block_kind::thinking, string_of(block, "thinking"), out);
      if (member_of(block, "input").is_object()) {
        add_text(block_kind::tool_call, dump(member_of(block, "input")), out);
      }
      if (incoming_) told_[*incoming_].signature = string_of(block, "signature");
    }
  }

  void decode_retry(const json& line, events& out) {
    const auto delay = integer_of(line, "retry_delay_ms");
    retry_after_ = std::chrono::milliseconds(delay);
    if (delay <= longest_retry_ms) return;
    const auto status = integer_of(line, "error_status");
    auto error = upstream_error(status, "the API refused the request for now: " +
                                            string_of(line, "error"));
    error.retry_after = retry_after_;
    cut_ = true;
    fail(std::move(error), out);
  }

  void decode_result(const json& line, events& out) {
    const auto told = string_of(line, "result");
    if (boolean_of(line, "is_error") || string_of(line, "subtype") != "success") {
      auto error = upstream_error(integer_of(line, "api_error_status"),
                                  told.empty() ? "claude ended with " + string_of(line, "subtype")
                                               : told);
      error.retry_after = retry_after_;
      return fail(std::move(error), out);
    }
    if (!started_) {
      return fail(api_error(error_kind::bad_gateway, "claude answered without the model: " + told),
                  out);
    }
    if (member_of(line, "total_cost_usd").is_number()) {
      cost_ = member_of(line, "total_cost_usd").get<double>();
      constexpr double precision = 1e12;  // the difference of sums shall not show their rounding
      total_usage_.cost_usd = std::round((cost_ - cost_before_) * precision) / precision;
    }
    if (!message_complete_) end_message(string_of(line, "stop_reason"), {}, out);
    if (!finished_) finish(out);
  }

  void begin_message(const json& message, bool streamed, events& out) {
    message_id_ = string_of(message, "id");
    streamed_ = streamed;
    message_usage_ = {};
    read_usage(member_of(message, "usage"), message_usage_);
    if (!started_) out.emplace_back(turn_started{string_of(message, "model"), message_usage_});
    started_ = true;
    if (message_complete_) first_ = told_.size();
    message_complete_ = false;
    next_ = first_;
    incoming_.reset();
    api_index_ = -1;
  }

  /// A block of a kind that no dialect can tell is skipped with its deltas.
  void begin_block(const json& block, events& out) {
    settle(out);
    incoming_.reset();
    const auto type = string_of(block, "type");
    if (finished_ || !started_ || message_complete_) return;
    if (type == "text") add_block(block_kind::text, block, out);
    if (type == "thinking") add_block(block_kind::thinking, block, out);
    if (type == "tool_use") add_block(block_kind::tool_call, block, out);
  }

  void add_block(block_kind kind, const json& block, events& out) {
    incoming_ = next_++;
    position_ = 0;
    if (*incoming_ < told_.size()) {
      if (told_[*incoming_].kind != kind) fail_diverged(out);
      return;
    }
    close_open_block(out);
    told_.push_back({kind, {}, {}});
    open_ = true;
    out.emplace_back(
        block_started{*incoming_, kind, string_of(block, "id"), string_of(block, "name")});
  }

  /// More of the incoming block: the part that a broken attempt told already is only compared.
  void add_text(block_kind kind, std::string more, events& out) {
    if (finished_ || !incoming_ || more.empty() || told_[*incoming_].kind != kind) return;
    auto& told = told_[*incoming_].text;
    const auto known = std::min(more.size(), told.size() - position_);
    if (told.compare(position_, known, more, 0, known) != 0) return fail_diverged(out);
    position_ += more.size();
    if (known == more.size()) return;
    if (!open_ || *incoming_ + 1 != told_.size()) return fail_diverged(out);
    more.erase(0, known);
    told += more;
    out.emplace_back(block_delta{*incoming_, std::move(more)});
  }

  /// The incoming block is complete: it must hold all that was told of it.
  void settle(events& out) {
    if (!finished_ && incoming_ && position_ != told_[*incoming_].text.size()) fail_diverged(out);
  }

  void close_open_block(events& out) {
    if (!open_) return;
    open_ = false;
    out.emplace_back(block_stopped{told_.size() - 1, told_.back().signature});
  }

  void end_message(const std::string& reason, const std::string& stop_sequence, events& out) {
    settle(out);
    if (finished_ || !started_ || message_complete_) return;
    if (next_ != told_.size()) return fail_diverged(out);
    close_open_block(out);
    add_usage(total_usage_, message_usage_);
    message_complete_ = true;
    stop_sequence_ = stop_sequence;
    reason_ = decode_reason(reason);
    const auto has_text = [](const told_block& block) { return !block.text.empty(); };
    cut_ = reason_ == stop_reason::max_tokens || reason_ == stop_reason::refusal ||
           std::none_of(told_.begin(), told_.end(), has_text);
    if (cut_) finish(out);
  }

  static stop_reason decode_reason(const std::string& reason) {
    if (reason == "max_tokens" || reason == "model_context_window_exceeded") {
      return stop_reason::max_tokens;
    }
    if (reason == "stop_sequence") return stop_reason::stop_sequence;
    if (reason == "tool_use") return stop_reason::tool_use;
    if (reason == "refusal") return stop_reason::refusal;
    return stop_reason::end_turn;
  }

  void finish(events& out) {
    finished_ = true;
    out.emplace_back(turn_stopped{reason_, stop_sequence_, total_usage_});
  }

  void fail_diverged(events& out) {
    fail(api_error(error_kind::bad_gateway,
                   "the connection to the API broke within the answer, and the API's second answer "
                   "differs from what was already sent"),
         out);
  }

  void fail_disordered(events& out) {
    fail(api_error(error_kind::bad_gateway, "claude told the answer's blocks out of order"), out);
  }

  double cost_before_;
  double cost_;
  bool started_ = false;
  bool finished_ = false;
  bool cut_ = false;

  std::string message_id_;  ///< the API message that is coming in
  bool streamed_ = false;
  bool message_complete_ = false;
  token_usage message_usage_;
  token_usage total_usage_;  ///< of the complete messages of this turn
  stop_reason reason_ = stop_reason::end_turn;
  std::string stop_sequence_;
  std::optional<std::chrono::milliseconds> retry_after_;

  std::vector<told_block> told_;         ///< all blocks of the turn, as the client knows them
  bool open_ = false;                    ///< the last of them was not told as stopped
  std::size_t first_ = 0;                ///< where the incoming message's blocks begin
  std::size_t next_ = 0;                 ///< where its next block goes
  std::optional<std::size_t> incoming_;  ///< the block that is coming in
  std::int64_t api_index_ = -1;          ///< what the API calls it
  std::size_t position_ = 0;             ///< how much of it came in
};

inline std::string encode_control_request(const std::string& id, const json& request) {
  return dump(json::object(
             {{"type", "control_request"}, {"request_id", id}, {"request", request}})) +
         '\n';
}

/// Gives a fresh process its system prompt, in place of Claude Code's own.
inline std::string encode_initialize(const std::string& id, const std::string& system) {
  return encode_control_request(
      id, json::object({{"subtype", "initialize"}, {"systemPrompt", json::array({system})}}));
}

/// Changes nothing; the answer proves that the process is up.
inline std::string encode_probe(const std::string& id) {
  return encode_control_request(
      id, json::object({{"subtype", "apply_flag_settings"}, {"settings", json::object()}}));
}

inline json encode_part(const content_part& part) {
  return std::visit(
      overloaded{
          [](const text_part& said) {
            return json::object({{"type", "text"}, {"text", said.text}});
          },
          [](const tool_call_part& call) {
            return json::object({{"type", "tool_use"},
                                 {"id", call.id},
                                 {"name", call.name},
                                 {"input", call.input}});
          },
          [](const tool_result_part& result) {
            return json::object({{"type", "tool_result"},
                                 {"tool_use_id", result.call_id},
                                 {"content", result.text}});
          },
      },
      part);
}

/// A user's last text that begins with '/' would be run as a command of Claude Code's (`/clear`,
/// `/cost`) instead of being asked. A blank in front of it keeps it a text.
inline void shield_slash_command(json& content) {
  for (auto block = content.rbegin(); block != content.rend(); ++block) {
    if (string_of(*block, "type") != "text") continue;
    const auto said = string_of(*block, "text");
    if (text::starts_with(said, "/")) (*block)["text"] = " " + said;
    return;
  }
}

/// One message of the conversation. `ask` is for the last one: the model answers it; the others
/// are only remembered (a user's is acknowledged by a `result` line, an assistant's is not).
inline std::string encode_message(const message& said, bool ask) {
  json content = json::array();
  for (const auto& part : said.parts) content.push_back(encode_part(part));
  const bool from_user = said.author == role::user;
  if (from_user) shield_slash_command(content);
  const char* author = from_user ? "user" : "assistant";
  json line = json::object(
      {{"type", author},
       {"message", json::object({{"role", author}, {"content", std::move(content)}})},
       {"parent_tool_use_id", json()},
       {"session_id", ""}});
  if (from_user && !ask) line["shouldQuery"] = false;
  return dump(line) + '\n';
}

//================================================================================================
// [12] cli_command - how `claude` is started
// uses: text, options | pure
//================================================================================================

/// What is fixed when a process starts and cannot be changed after: the key of a spare.
struct launch_profile {
  std::string model;

  bool operator==(const launch_profile& other) const { return model == other.model; }
};

/// What to execute.
struct command {
  std::vector<std::string> arguments;  ///< the program's path first
  environment_map environment;
  std::string working_directory;
};

/// The variables' names or prefixes (ending in '*') that every `claude` may have.
constexpr std::array<std::string_view, 26> common_variables = {
    "HOME",        "PATH",        "USER",          "LOGNAME",        "SHELL",
    "LANG",        "LC_*",        "TZ",            "TMPDIR",         "XDG_*",
    "HTTP_PROXY",  "HTTPS_PROXY", "NO_PROXY",      "http_proxy",     "https_proxy",
    "no_proxy",    "ALL_PROXY",   "all_proxy",     "SSL_CERT_FILE",  "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS", "CLAUDE_CONFIG_DIR", "CLAUDE_CODE_GIT_BASH_PATH",
    "CLAUDE_CODE_CLIENT_CERT", "CLAUDE_CODE_CLIENT_KEY", "ANTHROPIC_CUSTOM_HEADERS"};

/// What one auth method needs beside them, and no other gets.
inline std::vector<std::string_view> variables_of(auth_method method) {
  switch (method) {
    case auth_method::api_key:
      return {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"};
    case auth_method::bedrock:
      return {"AWS_*", "ANTHROPIC_BEDROCK_BASE_URL", "CLAUDE_CODE_SKIP_BEDROCK_AUTH",
              "ANTHROPIC_SMALL_FAST_MODEL*", "ANTHROPIC_DEFAULT_*"};
    case auth_method::vertex:
      return {"ANTHROPIC_VERTEX_*", "CLOUD_ML_REGION", "VERTEX_REGION_*", "GOOGLE_*", "GCLOUD_*",
              "CLOUDSDK_*", "CLAUDE_CODE_SKIP_VERTEX_AUTH", "ANTHROPIC_SMALL_FAST_MODEL*",
              "ANTHROPIC_DEFAULT_*"};
    case auth_method::cli:
    case auth_method::detect: return {"CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL"};
  }
  return {};
}

/// The method that the operator chose, or that the environment speaks for.
inline auth_method resolve_auth(const options& settings) {
  if (settings.auth != auth_method::detect) return settings.auth;
  const auto& variables = settings.environment;
  const auto is_on = [&](const char* name) {
    const auto value = text::to_lower(value_or(variables, name));
    return value == "1" || value == "true" || value == "yes" || value == "on";
  };
  if (is_on("CLAUDE_CODE_USE_BEDROCK")) return auth_method::bedrock;
  if (is_on("CLAUDE_CODE_USE_VERTEX")) return auth_method::vertex;
  const bool has_key = !value_or(variables, "ANTHROPIC_API_KEY").empty() ||
                       !value_or(variables, "ANTHROPIC_AUTH_TOKEN").empty();
  return has_key ? auth_method::api_key : auth_method::cli;
}

inline bool is_listed(std::string_view name, std::string_view pattern) {
  if (pattern.empty() || pattern.back() != '*') return name == pattern;
  return text::starts_with(name, pattern.substr(0, pattern.size() - 1));
}

/// Built by allow-list: whatever else the proxy's environment holds, client keys first of all,
/// stays with the proxy.
inline environment_map child_environment(const options& settings) {
  const auto method = resolve_auth(settings);
  const auto own = variables_of(method);
  environment_map variables;
  for (const auto& [name, value] : settings.environment) {
    const auto lists = [&, key = std::string_view(name)](std::string_view pattern) {
      return is_listed(key, pattern);
    };
    if (std::any_of(common_variables.begin(), common_variables.end(), lists) ||
        std::any_of(own.begin(), own.end(), lists)) {
      variables.emplace(name, value);
    }
  }
  if (method == auth_method::bedrock) variables["CLAUDE_CODE_USE_BEDROCK"] = "1";
  if (method == auth_method::vertex) variables["CLAUDE_CODE_USE_VERTEX"] = "1";
  variables["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1";
  variables["DISABLE_AUTOUPDATER"] = "1";
  variables["CLAUDE_CODE_MAX_RETRIES"] = "1";  // clients retry by themselves
  variables["MAX_THINKING_TOKENS"] = "0";
  // Without these two an `@/path` in a prompt is replaced by that file, and CLAUDE.md is read.
  variables["CLAUDE_CODE_DISABLE_ATTACHMENTS"] = "1";
  variables["CLAUDE_CODE_DISABLE_CLAUDE_MDS"] = "1";
  // Without these two a long conversation is replaced by a summary of it, at the cost of another
  // call, or refused before the API has seen it.
  variables["DISABLE_COMPACT"] = "1";
  variables["CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE"] = "1000000000";
  return variables;
}

/// The command of a process without tools, settings, MCP servers or memory of its own.
inline command make_command(const options& settings, const launch_profile& profile) {
  command made;
  made.arguments = {settings.claude_path, "-p",
                    "--input-format", "stream-json",
                    "--output-format", "stream-json",
                    "--verbose", "--include-partial-messages",
                    "--model=" + profile.model,
                    "--tools", "",
                    "--setting-sources", "",
                    "--strict-mcp-config",
                    "--no-session-persistence",
                    "--disable-slash-commands",
                    "--permission-mode", "default"};
  // `--bare` starts faster and adds nothing to the prompt, but never reads the CLI's own login.
  if (resolve_auth(settings) != auth_method::cli) made.arguments.emplace_back("--bare");
  made.environment = child_environment(settings);
  made.working_directory = settings.working_directory;
  return made;
}

//================================================================================================
// [13] process - child processes that cannot outlive us; the only section that makes them
// uses: text, options, cli_command | thread-safe where told
//================================================================================================

using steady_time = std::chrono::steady_clock::time_point;

inline std::error_code last_system_error() {
  return std::error_code(errno, std::generic_category());
}

/// Owns a file descriptor.
class unique_fd {
 public:
  unique_fd() = default;
  explicit unique_fd(int fd) : fd_(fd) {}
  unique_fd(unique_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  unique_fd& operator=(unique_fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  unique_fd(const unique_fd&) = delete;
  unique_fd& operator=(const unique_fd&) = delete;
  ~unique_fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

inline void set_nonblocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

/// Milliseconds for poll(2) until a time: rounded up, never negative.
inline int poll_timeout(steady_time until) {
  using namespace std::chrono;
  const auto left = ceil<milliseconds>(until - steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
}

struct pipe_ends {
  unique_fd read;
  unique_fd write;
};

/// Throws `std::system_error` when there is no descriptor left.
inline pipe_ends make_pipe() {
  std::array<int, 2> fds{};
#ifdef __linux__
  const int made = ::pipe2(fds.data(), O_CLOEXEC);
#else
  const int made = ::pipe(fds.data());
  if (made == 0) {
    ::fcntl(fds[0], F_SETFD, FD_CLOEXEC);
    ::fcntl(fds[1], F_SETFD, FD_CLOEXEC);
  }
#endif
  if (made != 0) throw std::system_error(last_system_error(), "pipe");
  return {unique_fd(fds[0]), unique_fd(fds[1])};
}

/// Wakes threads that wait in poll(2). `raise` is safe in a signal handler and from any thread.
class wake_signal {
 public:
  wake_signal() : ends_(make_pipe()) {
    set_nonblocking(ends_.read.get());
    set_nonblocking(ends_.write.get());
  }

  int fd() const { return ends_.read.get(); }

  void raise() const noexcept {
    const int saved = errno;
    const ssize_t written = ::write(ends_.write.get(), "!", 1);
    static_cast<void>(written);  // a full pipe wakes as well
    errno = saved;
  }

  bool is_raised() const {
    pollfd entry{fd(), POLLIN, 0};
    return ::poll(&entry, 1, 0) > 0;
  }

  /// How often it was raised since the last call.
  std::size_t clear() const {
    std::array<char, 64> bytes{};
    const ssize_t count = ::read(ends_.read.get(), bytes.data(), bytes.size());
    return count > 0 ? static_cast<std::size_t>(count) : 0;
  }

 private:
  pipe_ends ends_;
};

/// A tiny forked process that ends our children's process groups when we die, even by SIGKILL: it
/// notices by the end of file on a pipe that only we hold. Thread-safe. Owned by the pool.
///
/// PR_SET_PDEATHSIG would do for Linux alone, but fires when the spawning *thread* ends.
class child_guard {
 public:
  /// Also ignores SIGPIPE for this program: a child may die while it is written to.
  child_guard() : pipe_(make_pipe()) {
    std::signal(SIGPIPE, SIG_IGN);
    pid_ = ::fork();
    if (pid_ < 0) throw std::system_error(last_system_error(), "fork");
    if (pid_ == 0) watch(pipe_.read.get());
    pipe_.read.reset();
  }
  child_guard(const child_guard&) = delete;
  child_guard& operator=(const child_guard&) = delete;
  ~child_guard() {
    pipe_.write.reset();
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {}
  }

  void add(pid_t group) const { tell(group); }
  void remove(pid_t group) const { tell(-group); }

 private:
  void tell(pid_t message) const {
    ssize_t written = 0;
    do {
      written = ::write(pipe_.write.get(), &message, sizeof message);
    } while (written < 0 && errno == EINTR);
  }

  static void signal_all(const std::array<pid_t, 4096>& groups, int signal) {
    for (const pid_t group : groups) {
      if (group > 0) ::kill(-group, signal);
    }
  }

  /// Runs in the forked process: only async-signal-safe calls.
  [[noreturn]] static void watch(int fd) {
    ::setpgid(0, 0);  // a Ctrl-C at the terminal is for us, not for it
    ::signal(SIGTERM, SIG_IGN);
    for (int other = 0; other < 4096; ++other) {
      if (other != fd) ::close(other);
    }
    static std::array<pid_t, 4096> groups{};
    pid_t message = 0;
    for (;;) {
      const ssize_t count = ::read(fd, &message, sizeof message);
      if (count < 0 && errno == EINTR) continue;
      if (count != sizeof message) break;
      const pid_t known = message > 0 ? 0 : -message;
      const auto slot = std::find(groups.begin(), groups.end(), known);
      if (slot != groups.end()) *slot = message > 0 ? message : 0;
    }
    signal_all(groups, SIGTERM);
    const bool any = std::any_of(groups.begin(), groups.end(), [](pid_t g) { return g > 0; });
    if (any) ::usleep(300'000);
    signal_all(groups, SIGKILL);
    ::_exit(0);
  }

  pipe_ends pipe_;
  pid_t pid_ = -1;
};

/// A running command in a process group of its own, with pipes to its three streams. Its owner
/// ends it; the destructor kills what is left. One thread at a time.
class child_process {
 public:
  /// Throws `std::system_error` when the program cannot be started.
  child_process(const command& what, const child_guard& guard) : guard_(&guard) {
    pipe_ends in = make_pipe();
    pipe_ends out = make_pipe();
    pipe_ends err = make_pipe();
    pid_ = spawn(what, in.read.get(), out.write.get(), err.write.get());
    guard_->add(pid_);
    input = std::move(in.write);
    output = std::move(out.read);
    errors = std::move(err.read);
    for (const auto* fd : {&input, &output, &errors}) set_nonblocking(fd->get());
  }
  child_process(const child_process&) = delete;
  child_process& operator=(const child_process&) = delete;
  ~child_process() {
    if (pid_ < 0) return;
    signal_group(SIGKILL);
    reap(0);
  }

  unique_fd input;   ///< the child's stdin; not blocking, as the others
  unique_fd output;  ///< its stdout
  unique_fd errors;  ///< its stderr

  pid_t pid() const { return pid_; }

  void signal_group(int signal) const {
    if (pid_ > 0) ::kill(-pid_, signal);
  }

  /// True when the process has ended by itself or by a signal; it stays a zombie until `try_reap`,
  /// so that its id cannot name another process.
  bool has_exited() const {
    siginfo_t info{};
    if (pid_ < 0) return true;
    const int asked =
        ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    if (asked != 0) return errno == ECHILD;  // the program ignores SIGCHLD: it is gone already
    return info.si_pid == pid_;
  }

  /// Waits a moment for the end of a process that has closed its streams.
  bool wait_for_exit(std::chrono::milliseconds longest) const {
    const auto until = std::chrono::steady_clock::now() + longest;
    while (!has_exited() && std::chrono::steady_clock::now() < until) ::usleep(1'000);
    return has_exited();
  }

  /// Takes an exited process off the system's list and kills what it left in its group.
  bool try_reap() {
    if (pid_ < 0) return true;
    if (!has_exited()) return false;
    signal_group(SIGKILL);
    return reap(WNOHANG);
  }

  /// `exit code 1`, `signal 9`; empty while it runs.
  const std::string& ending() const { return ending_; }

 private:
  static std::vector<char*> pointers_to(std::vector<std::string>& strings) {
    std::vector<char*> pointers;
    for (auto& string : strings) pointers.push_back(string.data());
    pointers.push_back(nullptr);
    return pointers;
  }

  static pid_t spawn(const command& what, int in, int out, int err) {
    auto arguments = what.arguments;
    std::vector<std::string> variables;
    for (const auto& [name, value] : what.environment) variables.push_back(name + "=" + value);
    posix_spawn_file_actions_t actions{};
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
    if (!what.working_directory.empty()) {
      posix_spawn_file_actions_addchdir_np(&actions, what.working_directory.c_str());
    }
    posix_spawnattr_t attributes{};
    posix_spawnattr_init(&attributes);
    short flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
#ifdef __APPLE__
    flags |= POSIX_SPAWN_CLOEXEC_DEFAULT;
#elif defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
#endif
    sigset_t signals;
    sigfillset(&signals);
    posix_spawnattr_setsigdefault(&attributes, &signals);
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes, &signals);
    posix_spawnattr_setflags(&attributes, flags);
    pid_t pid = -1;
    const int failed = ::posix_spawnp(&pid, arguments.front().c_str(), &actions, &attributes,
                                      pointers_to(arguments).data(), pointers_to(variables).data());
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (failed != 0) {
      throw std::system_error(std::error_code(failed, std::generic_category()),
                              "cannot start " + arguments.front());
    }
    return pid;
  }

  bool reap(int flags) {
    int status = 0;
    pid_t reaped = 0;
    do {
      reaped = ::waitpid(pid_, &status, flags);
    } while (reaped < 0 && errno == EINTR);
    if (reaped == 0) return false;
    ending_ = WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                  : "exit code " + std::to_string(WEXITSTATUS(status));
    guard_->remove(pid_);
    pid_ = -1;
    return true;
  }

  const child_guard* guard_;
  pid_t pid_ = -1;
  std::string ending_;
};

/// Reads what is there, up to 1 MiB. False when nothing can come any more.
inline bool read_available(int fd, std::string& bytes) {
  std::array<char, 65536> chunk;
  for (int i = 0; i < 16; ++i) {
    const ssize_t count = ::read(fd, chunk.data(), chunk.size());
    if (count == 0) return false;
    if (count < 0) return errno == EAGAIN || errno == EINTR;
    bytes.append(chunk.data(), static_cast<std::size_t>(count));
    if (static_cast<std::size_t>(count) < chunk.size()) break;
  }
  return true;
}

/// Writes everything to a file. False when it does not fit.
inline bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) bytes.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

/// Bytes on their way to a descriptor that does not block.
class write_buffer {
 public:
  bool empty() const { return sent_ == bytes_.size(); }
  void add(std::string_view bytes) { bytes_ += bytes; }

  /// Writes what fits. False when nobody reads any more.
  bool flush(int fd) {
    while (!empty()) {
      const ssize_t count = ::write(fd, bytes_.data() + sent_, bytes_.size() - sent_);
      if (count < 0) return errno == EAGAIN || errno == EINTR;
      sent_ += static_cast<std::size_t>(count);
    }
    bytes_.clear();
    sent_ = 0;
    return true;
  }

 private:
  std::string bytes_;
  std::size_t sent_ = 0;
};

/// What a short command said.
struct command_output {
  bool finished = false;  ///< false: it was still running at the deadline and was killed
  std::string ending;
  std::string output;
  std::string errors;
};

/// Runs a short command to its end, or until `stop` is raised. Throws `std::system_error` when it
/// cannot be started.
inline command_output run_command(const command& what, const child_guard& guard,
                                  std::chrono::milliseconds timeout, const wake_signal& stop) {
  child_process child(what, guard);
  child.input.reset();
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  command_output said;
  while (std::chrono::steady_clock::now() < deadline && !stop.is_raised()) {
    std::array<pollfd, 2> fds{{{child.output.get(), POLLIN, 0}, {child.errors.get(), POLLIN, 0}}};
    ::poll(fds.data(), fds.size(), 10);
    const bool exited = child.has_exited();  // before the last read, so that nothing is missed
    if (child.output && !read_available(child.output.get(), said.output)) child.output.reset();
    if (child.errors && !read_available(child.errors.get(), said.errors)) child.errors.reset();
    if (exited) break;
  }
  said.finished = child.try_reap();
  said.ending = child.ending();
  return said;
}

/// Memory of the machine in bytes; 0 when it is not told.
inline std::uint64_t physical_memory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long size = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || size <= 0) return 0;
  return static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(size);
}

/// The first executable file of that name on the environment's PATH; empty when there is none.
inline std::string find_program(const std::string& name, const environment_map& variables) {
  const auto executable = [](const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
           ::access(path.c_str(), X_OK) == 0;
  };
  if (name.find('/') != std::string::npos) return executable(name) ? name : std::string();
  for (const auto& folder : text::split(value_or(variables, "PATH"), ':')) {
    if (executable(folder + "/" + name)) return folder + "/" + name;
  }
  return {};
}

/// A private directory (mode 0700) that is removed with all it holds.
class temporary_directory {
 public:
  /// Throws `std::system_error` when it cannot be made.
  explicit temporary_directory(const std::string& parent)
      : path_(parent + "/claude-openai-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) {
      throw std::system_error(last_system_error(), "cannot make a directory in " + parent);
    }
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

//================================================================================================
// [14] worker - one `claude` process: probe, replay, turn
// uses: text, errors, log, json_access, conversation, events, cli_protocol, process | one thread
//================================================================================================

/// Speaks with one process. Whoever holds it moves its bytes with `pump`; it owns no thread.
class worker {
 public:
  using events = std::deque<event>;

  worker(const command& what, const child_guard& guard)
      : child_(std::make_unique<child_process>(what, guard)) {
    send(encode_probe(probe_id));
  }

  /// The process has answered once, so that its start is no longer on anybody's clock.
  bool warm() const { return warm_; }

  /// The process ended, or said what nobody understands, before it told anything of a turn.
  bool lost() const { return lost_; }

  /// The process holds the conversation after this turn as the client knows it, and can go on.
  bool can_go_on() const {
    return decoder_.finished() && !decoder_.was_cut() && !failed_ && events_.empty();
  }

  /// Tells the process the conversation from message `first` on, which is 0 for a fresh one; its
  /// answer comes as events. The turn before must have ended.
  void begin(const turn_request& request, std::size_t first) {
    std::string batch;
    if (first == 0) batch = encode_initialize(initialize_id, request.system);
    for (std::size_t i = first; i < request.messages.size(); ++i) {
      batch += encode_message(request.messages[i], i + 1 == request.messages.size());
      if (request.messages[i].author != role::user) continue;
      batches_.push_back(std::move(batch));
      batch.clear();
    }
    decoder_ = turn_decoder(decoder_.cost());
    told_ = false;
    expecting_ = expectation::turn;
    send_batch();
  }

  /// Only asks the process for its models and its account; see `introduction`.
  void begin_introduction() {
    expecting_ = expectation::introduction;
    send(encode_initialize(initialize_id, "-"));
  }

  /// What the process answered to `initialize`; null until then.
  const json& introduction() const { return introduction_; }

  /// The next event that is known already.
  std::optional<event> pop() {
    if (events_.empty()) return std::nullopt;
    event next = std::move(events_.front());
    events_.pop_front();
    told_ = true;
    return next;
  }

  /// What poll(2) has to watch for this worker.
  void add_poll_entries(std::vector<pollfd>& entries) const {
    if (!outgoing_.empty() && child_->input) {
      entries.push_back({child_->input.get(), POLLOUT, 0});
    }
    if (child_->output) entries.push_back({child_->output.get(), POLLIN, 0});
    if (child_->errors) entries.push_back({child_->errors.get(), POLLIN, 0});
  }

  /// Moves all bytes that can be moved without waiting, and reads what the process says.
  void pump() {
    const bool exited = child_->has_exited();  // before the last read, so that nothing is missed
    send({});
    read_complaints();
    std::string said;
    const bool open = child_->output && read_available(child_->output.get(), said);
    splitter_.feed(said);
    while (const auto line = splitter_.next()) read_line(*line);
    if (splitter_.overflowed()) lose("claude printed an endless line");
    if (said.empty() && (exited || !open)) lose_exited();
  }

  /// Gives the process up: whoever holds the child ends it.
  std::unique_ptr<child_process> take_child() { return std::move(child_); }

 private:
  enum class expectation { nothing, introduction, turn };

  static constexpr const char* probe_id = "probe";
  static constexpr const char* initialize_id = "initialize";
  static constexpr std::size_t longest_complaint = 2048;

  void send(std::string_view bytes) {
    outgoing_.add(bytes);
    if (child_->input && !outgoing_.flush(child_->input.get())) child_->input.reset();
  }

  void send_batch() {
    send(batches_.front());
    batches_.pop_front();
  }

  void read_line(std::string_view text) {
    if (text::trim(text).empty()) return;
    const json line = json::parse(text, nullptr, false);
    if (!line.is_object()) return lose("claude printed a line that is not a JSON object");
    const auto type = string_of(line, "type");
    if (type == "control_response") return read_control_response(member_of(line, "response"));
    if (expecting_ != expectation::turn) return;
    if (!batches_.empty()) return read_acknowledgement(line);
    std::vector<event> decoded;
    decoder_.decode(line, decoded);
    for (auto& what : decoded) events_.push_back(std::move(what));
    if (decoder_.was_cut()) child_->signal_group(SIGKILL);  // before it calls the API again
  }

  void read_control_response(const json& response) {
    warm_ = true;
    if (string_of(response, "request_id") != initialize_id) return;
    if (string_of(response, "subtype") == "error") {
      return lose("claude refused the conversation: " + string_of(response, "error"));
    }
    introduction_ = member_of(response, "response");
  }

  /// While history is told, each user message is acknowledged by a result.
  void read_acknowledgement(const json& line) {
    if (string_of(line, "type") != "result") return;
    if (boolean_of(line, "is_error")) {
      return lose("claude refused the history: " + string_of(line, "result"));
    }
    send_batch();
  }

  void read_complaints() {
    if (child_->errors && !read_available(child_->errors.get(), complaints_)) {
      child_->errors.reset();
    }
    if (complaints_.size() > longest_complaint) {
      complaints_.erase(0, complaints_.size() - longest_complaint);
    }
  }

  void lose_exited() {
    const bool reaped = child_->wait_for_exit(std::chrono::milliseconds(100)) && child_->try_reap();
    read_complaints();
    lose("claude ended unexpectedly" + (reaped ? " (" + child_->ending() + ")" : std::string()));
  }

  void lose(const std::string& reason) {
    failed_ = true;
    if (events_.empty() && (!told_ || decoder_.finished())) lost_ = true;
    const auto complaint = text::repair_utf8(text::trim(redact(complaints_)));
    std::vector<event> decoded;
    decoder_.fail(api_error(error_kind::bad_gateway,
                            complaint.empty() ? reason : reason + ": " + complaint),
                  decoded);
    for (auto& what : decoded) events_.push_back(std::move(what));
  }

  std::unique_ptr<child_process> child_;
  write_buffer outgoing_;
  line_splitter splitter_;
  std::string complaints_;  ///< the last of its stderr
  bool warm_ = false;
  bool lost_ = false;
  bool failed_ = false;
  bool told_ = false;

  expectation expecting_ = expectation::nothing;
  std::deque<std::string> batches_;  ///< each ends with a user's message and waits for its answer
  json introduction_;
  turn_decoder decoder_;
  events events_;
};

//================================================================================================
// [15] pool - spares, living conversations, the cap, the queue, and the end of processes
// uses: text, errors, log, options, conversation, cli_command, process, worker | thread-safe
//================================================================================================

/// Processes by state. Their sum never exceeds the cap.
struct process_counts {
  int spare = 0;     ///< ready, or soon
  int warm = 0;      ///< of the spares: have answered already
  int busy = 0;      ///< serve a request
  int idle = 0;      ///< hold a conversation that may go on
  int stopping = 0;  ///< told to end, not yet gone
  int maximum = 0;
  int queued = 0;    ///< requests that wait for a process
  std::chrono::milliseconds stalled{0};  ///< how long requests wait and nothing has moved
};

/// As many processes as the memory carries, at 250 MiB each and at most 32.
inline int default_max_processes(std::uint64_t memory_bytes) {
  constexpr std::uint64_t each = 250ULL * 1024 * 1024;
  return static_cast<int>(std::clamp<std::uint64_t>(memory_bytes / each, 2, 32));
}

/// What a request wants of the pool.
struct process_demand {
  launch_profile profile;
  std::string client;        ///< the queue is fair between clients
  conversation_trace trace;  ///< of the request; a process that holds a part of it goes on
};

class pool;

/// The right to use one process. When it goes the process ends, unless `keep` was said. Move-only;
/// must not outlive the pool.
class lease {
 public:
  lease(pool& owner, std::unique_ptr<claude_openai::worker> process, launch_profile profile,
        std::size_t known_replies, bool was_waiting)
      : pool_(&owner),
        worker_(std::move(process)),
        profile_(std::move(profile)),
        known_replies_(known_replies),
        was_waiting_(was_waiting) {}
  lease(lease&&) noexcept = default;
  lease& operator=(lease&&) = delete;
  inline ~lease();

  claude_openai::worker& worker() const { return *worker_; }

  /// How many of the request's assistant messages the process holds already, with all before.
  std::size_t known_replies() const { return known_replies_; }

  /// True when the process was started before the request came, so that it may have died since.
  bool was_waiting() const { return was_waiting_; }

  /// The process now holds the conversation of this trace, for a request that goes on with it.
  void keep(std::string words) { kept_ = std::move(words); }

 private:
  pool* pool_;
  std::unique_ptr<claude_openai::worker> worker_;
  launch_profile profile_;
  std::size_t known_replies_;
  bool was_waiting_;
  std::optional<std::string> kept_;
};

/// Owns every process. Requests take them; one thread, the janitor, starts spares in the
/// background and ends what is given back.
class pool {
 public:
  class ticket;

  pool(const options& settings, std::shared_ptr<const child_guard> guard)
      : settings_(settings), guard_(std::move(guard)) {
    maximum_ = settings.max_processes > 0 ? settings.max_processes
                                          : default_max_processes(physical_memory());
  }
  pool(const pool&) = delete;
  pool& operator=(const pool&) = delete;

  /// Kills what is left. No lease and no ticket may be out.
  ~pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    wake_.raise();
    if (janitor_.joinable()) janitor_.join();
  }

  /// Starts the janitor. It keeps spares of the default model, and of models asked for, once
  /// `keep_spares` was called.
  void start() {
    janitor_ = std::thread([this] { run_janitor(); });
  }

  void keep_spares() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      wanted_ = settings_.spares;
      remember({settings_.default_model});
    }
    wake_.raise();
  }

  process_counts counts() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    process_counts now;
    now.spare = static_cast<int>(spares_.size()) + starting_;
    now.busy = busy_;
    now.idle = static_cast<int>(idle_.size());
    now.stopping = static_cast<int>(stopping_.size());
    now.maximum = maximum_;
    now.queued = static_cast<int>(queued_);
    for (const auto& spare : spares_) now.warm += spare.process->warm() ? 1 : 0;
    if (queued_ > 0) {
      now.stalled = std::chrono::duration_cast<std::chrono::milliseconds>(
          std::chrono::steady_clock::now() - last_moved_);
    }
    return now;
  }

 private:
  friend class lease;

  struct spare_process {
    launch_profile profile;
    std::unique_ptr<worker> process;
  };

  struct idle_process {
    std::string words;  ///< trace of the conversation that it holds
    std::unique_ptr<worker> process;
    steady_time since;
  };

  struct stopping_process {
    std::unique_ptr<child_process> child;
    steady_time kill_at;
    bool killed = false;
  };

  /// A slot for one request: a process that waited, or the right to start one.
  struct grant {
    std::unique_ptr<worker> process;
    std::size_t known_replies = 0;
  };

  /// A request in the queue. Owned by its ticket.
  struct waiter {
    const process_demand* demand;
    std::optional<grant> granted;
    wake_signal wake;
  };

  /// A burst of requests comes first; new spares would only take its processor time.
  static constexpr std::chrono::milliseconds refill_delay{200};
  static constexpr std::chrono::milliseconds reap_interval{5};

  std::unique_ptr<worker> start_worker(const launch_profile& profile) const {
    try {
      return std::make_unique<worker>(make_command(settings_, profile), *guard_);
    } catch (const std::system_error& failure) {
      api_error error(error_kind::unavailable, std::string(failure.what()));
      const bool missing = failure.code().value() == ENOENT || failure.code().value() == EACCES;
      if (missing || settings_.claude_path.empty()) {
        error.message = "claude cannot be started (" + settings_.claude_path +
                        "); install it with `npm install -g @anthropic-ai/claude-code`, or name it "
                        "with --claude-path";
        error.code = "claude_not_found";
        error.retry_is_futile = true;
      }
      throw error;
    }
  }

  // From here to the janitor's part everything needs the lock.

  int total() const {
    return busy_ + starting_ +
           static_cast<int>(spares_.size() + idle_.size() + stopping_.size());
  }

  /// Most recently asked-for profiles first: they get the spares.
  void remember(const launch_profile& profile) {
    profiles_.erase(std::remove(profiles_.begin(), profiles_.end(), profile), profiles_.end());
    profiles_.push_front(profile);
    if (profiles_.size() > 4) profiles_.pop_back();
  }

  /// A slot for the request, if there is one: the process that holds most of its history, else a
  /// spare, else room for a new one. Where there is none, the least useful process makes room.
  std::optional<grant> try_grant(const process_demand& demand) {
    last_taken_ = std::chrono::steady_clock::now();
    remember(demand.profile);
    grant found = take_idle(demand.trace);
    if (!found.process) found.process = take_spare(demand.profile);
    if (!found.process && total() >= maximum_) {
      if (stopping_.empty()) stop_least_useful();
      return std::nullopt;
    }
    ++busy_;  // the slot is taken before a process starts: no race can pass the cap
    last_moved_ = last_taken_;
    wake_.raise();
    return found;
  }

  /// The process that holds the longest part of the history, up to one of its replies.
  grant take_idle(const conversation_trace& trace) {
    grant found;
    auto best = idle_.end();
    for (auto idle = idle_.begin(); idle != idle_.end(); ++idle) {
      const auto length = idle->words.size();
      const auto reply = std::find(trace.replies.begin(), trace.replies.end(), length);
      const bool longer = best == idle_.end() || length > best->words.size();
      if (reply == trace.replies.end() || !longer || idle->process->lost()) continue;
      if (trace.words.compare(0, length, idle->words) != 0) continue;
      best = idle;
      found.known_replies = static_cast<std::size_t>(reply - trace.replies.begin()) + 1;
    }
    if (best == idle_.end()) return found;
    found.process = std::move(best->process);
    idle_.erase(best);
    return found;
  }

  /// The spare of that profile that is warm, else any of it; null when there is none.
  std::unique_ptr<worker> take_spare(const launch_profile& profile) {
    auto best = spares_.end();
    for (auto spare = spares_.begin(); spare != spares_.end(); ++spare) {
      if (!(spare->profile == profile) || spare->process->lost()) continue;
      if (best == spares_.end() || (spare->process->warm() && !best->process->warm())) {
        best = spare;
      }
    }
    if (best == spares_.end()) return nullptr;
    auto process = std::move(best->process);
    spares_.erase(best);
    return process;
  }

  /// The least recently used conversation costs only a replay; a spare of another model less still
  /// when no conversation is left.
  void stop_least_useful() {
    if (!idle_.empty()) {
      stop(idle_.front().process->take_child());
      idle_.pop_front();
    } else if (!spares_.empty()) {
      stop(spares_.back().process->take_child());
      spares_.pop_back();
    } else {
      return;
    }
    wake_.raise();
  }

  /// Ends a process without waiting for it.
  void stop(std::unique_ptr<child_process> child) {
    child->input.reset();
    child->signal_group(SIGTERM);
    stopping_.push_back(
        {std::move(child), std::chrono::steady_clock::now() + settings_.stop_grace, false});
  }

  /// Grants slots to the requests that wait, clients in turn.
  void serve_queue() {
    while (queued_ > 0) {
      auto& waiting = queue_.front().second;
      auto granted = try_grant(*waiting.front()->demand);
      if (!granted) return;
      auto* served = waiting.front();
      leave_queue(*served);
      served->granted = std::move(granted);
      served->wake.raise();
    }
  }

  void enter_queue(waiter& waiting) {
    const auto& client = waiting.demand->client;
    auto row = std::find_if(queue_.begin(), queue_.end(),
                            [&](const auto& entry) { return entry.first == client; });
    if (row == queue_.end()) row = queue_.insert(queue_.end(), {client, {}});
    row->second.push_back(&waiting);
    if (queued_++ == 0) last_moved_ = std::chrono::steady_clock::now();
  }

  /// Takes a request out of the queue; its client goes to the end of the round.
  void leave_queue(waiter& waiting) {
    const auto& client = waiting.demand->client;
    const auto row = std::find_if(queue_.begin(), queue_.end(),
                                  [&](const auto& entry) { return entry.first == client; });
    auto& requests = row->second;
    requests.erase(std::find(requests.begin(), requests.end(), &waiting));
    if (!requests.empty()) queue_.emplace_back(client, std::move(requests));
    queue_.erase(row);
    --queued_;
  }

  void give_back(std::unique_ptr<worker> process, std::optional<std::string> kept) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --busy_;
    if (kept && !closing_ && settings_.idle_timeout.count() > 0) {
      idle_.push_back({std::move(*kept), std::move(process), std::chrono::steady_clock::now()});
    } else if (process) {
      stop(process->take_child());
    }
    serve_queue();
    wake_.raise();
  }

  // The janitor. All below runs in its thread.

  void run_janitor() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (closing_) stop_waiting();
      tend_spares();
      tend_idle();
      reap();
      serve_queue();
      if (closing_ && stopping_.empty() && busy_ == 0) return;
      const auto due = start_spare(lock);
      auto entries = poll_entries();
      lock.unlock();
      ::poll(entries.data(), static_cast<nfds_t>(entries.size()), poll_timeout(due));
      wake_.clear();
      lock.lock();
    }
  }

  std::vector<pollfd> poll_entries() const {
    std::vector<pollfd> entries{{wake_.fd(), POLLIN, 0}};
    for (const auto& spare : spares_) spare.process->add_poll_entries(entries);
    for (const auto& idle : idle_) idle.process->add_poll_entries(entries);
    return entries;
  }

  void stop_waiting() {
    for (auto& spare : spares_) stop(spare.process->take_child());
    for (auto& idle : idle_) stop(idle.process->take_child());
    spares_.clear();
    idle_.clear();
  }

  /// Reads what spares say, and drops those that died or that nobody will ask for.
  void tend_spares() {
    for (auto spare = spares_.begin(); spare != spares_.end();) {
      spare->process->pump();
      const bool lost = spare->process->lost();
      if (!lost && spare->process->warm()) failures_ = 0;
      const bool surplus = count_spares(spare->profile) > share_of(spare->profile);
      if (lost) back_off();
      if (lost || surplus) {
        stop(spare->process->take_child());
        spare = spares_.erase(spare);
      } else {
        ++spare;
      }
    }
  }

  /// Drops conversations whose process died or that nobody went on with; the oldest come first.
  void tend_idle() {
    const auto oldest = std::chrono::steady_clock::now() - settings_.idle_timeout;
    for (auto idle = idle_.begin(); idle != idle_.end();) {
      idle->process->pump();
      if (idle->process->lost() || idle->since < oldest) {
        stop(idle->process->take_child());
        idle = idle_.erase(idle);
      } else {
        ++idle;
      }
    }
  }

  void reap() {
    const auto now = std::chrono::steady_clock::now();
    for (auto process = stopping_.begin(); process != stopping_.end();) {
      if (!process->killed && now >= process->kill_at) {
        process->child->signal_group(SIGKILL);
        process->killed = true;
      }
      process = process->child->try_reap() ? stopping_.erase(process) : std::next(process);
    }
  }

  /// A `claude` that dies at its start would otherwise be started again without end.
  void back_off() {
    failures_ = std::min(failures_ + 1, 6);
    const std::chrono::seconds delay(1 << (failures_ - 1));
    refill_not_before_ = std::chrono::steady_clock::now() + delay;
  }

  /// Starts a spare if one is due. Returns when the janitor has to look again.
  steady_time start_spare(std::unique_lock<std::mutex>& lock) {
    const auto now = std::chrono::steady_clock::now();
    auto next = now + (stopping_.empty() ? std::chrono::minutes(1) : reap_interval);
    if (!idle_.empty()) next = std::min(next, idle_.front().since + settings_.idle_timeout);
    const auto profile = missing_spare();
    if (!profile) return next;
    const auto due = std::max(last_taken_ + refill_delay, refill_not_before_);
    if (now < due) return std::min(due, next);
    if (total() >= maximum_) {
      if (stopping_.empty()) stop_least_useful();
      return now + reap_interval;
    }
    ++starting_;
    lock.unlock();
    std::unique_ptr<worker> fresh;
    try {
      fresh = start_worker(*profile);
    } catch (const api_error& failure) {
      settings_.log.warning("no spare: " + failure.message);
    }
    lock.lock();
    --starting_;
    if (fresh) {
      spares_.push_back({*profile, std::move(fresh)});
    } else {
      back_off();
    }
    return now;
  }

  /// The first profile that has fewer spares than its share. At the cap an old conversation makes
  /// room for one spare, so that a new client need not wait; the latest conversation stays.
  std::optional<launch_profile> missing_spare() const {
    const bool makes_room = spares_.empty() && idle_.size() > 1;
    if (closing_ || queued_ > 0 || (total() >= maximum_ && !makes_room)) return std::nullopt;
    for (const auto& profile : profiles_) {
      if (count_spares(profile) < share_of(profile)) return profile;
    }
    return std::nullopt;
  }

  int count_spares(const launch_profile& profile) const {
    return static_cast<int>(std::count_if(
        spares_.begin(), spares_.end(),
        [&](const auto& spare) { return spare.profile == profile; }));
  }

  /// The wanted spares are dealt out to the remembered profiles in turn, the latest first.
  int share_of(const launch_profile& profile) const {
    const auto found = std::find(profiles_.begin(), profiles_.end(), profile);
    if (found == profiles_.end()) return 0;
    const auto all = static_cast<int>(profiles_.size());
    const auto place = static_cast<int>(found - profiles_.begin());
    return wanted_ / all + (place < wanted_ % all ? 1 : 0);
  }

  const options& settings_;
  std::shared_ptr<const child_guard> guard_;
  int maximum_ = 0;

  mutable std::mutex mutex_;  ///< guards all below but the janitor itself
  std::deque<launch_profile> profiles_;
  std::list<spare_process> spares_;
  std::list<idle_process> idle_;  ///< the least recently used first
  std::list<stopping_process> stopping_;
  std::list<std::pair<std::string, std::deque<waiter*>>> queue_;  ///< by client, next one first
  std::size_t queued_ = 0;
  int busy_ = 0;
  int starting_ = 0;
  int wanted_ = 0;  ///< spares
  int failures_ = 0;
  steady_time last_taken_{};
  steady_time last_moved_{};  ///< when a request last got a process
  steady_time refill_not_before_{};
  bool closing_ = false;

  wake_signal wake_;
  std::thread janitor_;
};

inline lease::~lease() {
  if (worker_) pool_->give_back(std::move(worker_), std::move(kept_));
}

/// One request's place: at a process, or in the queue for one. One thread; must not outlive the
/// pool. Its owner polls `fd` while it waits.
class pool::ticket {
 public:
  /// Throws a 429 when the queue is full.
  ticket(pool& owner, process_demand demand)
      : pool_(owner),
        demand_(std::move(demand)),
        deadline_(std::chrono::steady_clock::now() + owner.settings_.queue_timeout) {
    const std::lock_guard<std::mutex> lock(pool_.mutex_);
    if (pool_.queued_ == 0) granted_ = pool_.try_grant(demand_);
    if (granted_) return;
    // A process that is ending makes room for one request, which is not what the queue bounds.
    const auto places = static_cast<std::size_t>(pool_.settings_.max_queue);
    if (pool_.queued_ >= places + pool_.stopping_.size()) throw busy("the queue is full");
    waiting_ = std::make_unique<waiter>(waiter{&demand_, std::nullopt, {}});
    pool_.enter_queue(*waiting_);
  }
  ticket(const ticket&) = delete;
  ticket& operator=(const ticket&) = delete;

  ~ticket() {
    std::optional<grant> unclaimed = std::move(granted_);
    {
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      if (waiting_ && !waiting_->granted) pool_.leave_queue(*waiting_);
      if (waiting_ && waiting_->granted) unclaimed = std::move(waiting_->granted);
    }
    if (!unclaimed) return;
    std::optional<std::string> kept;  // a conversation's process goes back to where it was
    if (unclaimed->known_replies > 0) {
      const auto length = demand_.trace.replies[unclaimed->known_replies - 1];
      kept = demand_.trace.words.substr(0, length);
    }
    pool_.give_back(std::move(unclaimed->process), std::move(kept));
  }

  /// Readable when it may be worth to `try_take`; -1 when it is already.
  int fd() const { return waiting_ ? waiting_->wake.fd() : -1; }

  /// The process, once there is one. Throws a 429 when the wait was too long, and a 503 when
  /// `claude` cannot be started.
  std::optional<lease> try_take() {
    if (waiting_ && !claim()) return std::nullopt;
    if (!granted_) return std::nullopt;
    grant mine = std::move(*granted_);
    granted_.reset();
    const bool was_waiting = mine.process != nullptr;
    try {
      if (!was_waiting) mine.process = pool_.start_worker(demand_.profile);
    } catch (...) {
      pool_.give_back(nullptr, std::nullopt);
      throw;
    }
    return lease(pool_, std::move(mine.process), demand_.profile, mine.known_replies, was_waiting);
  }

 private:
  /// Fetches what the queue granted. Throws when the wait was too long.
  bool claim() {
    const std::lock_guard<std::mutex> lock(pool_.mutex_);
    if (!waiting_->granted) {
      if (std::chrono::steady_clock::now() < deadline_) return false;
      throw busy("none was free in time");
    }
    granted_ = std::move(waiting_->granted);
    waiting_.reset();
    return true;
  }

  api_error busy(const char* how) const {
    api_error error(error_kind::rate_limited,
                    "all " + std::to_string(pool_.maximum_) + " claude processes are busy and " +
                        how + "; try again, or start the proxy with a larger --max-processes");
    error.code = "processes_busy";
    error.retry_after = std::chrono::seconds(1);
    return error;
  }

  pool& pool_;
  process_demand demand_;
  steady_time deadline_;
  std::optional<grant> granted_;
  std::unique_ptr<waiter> waiting_;
};

//================================================================================================
// [16] sessions - histories that the proxy keeps for a client
// uses: text, log, json_access, options, conversation, cli_protocol, process | thread-safe
//================================================================================================

/// What is told of a session.
struct session_info {
  std::string id;
  std::chrono::system_clock::time_point created;
  std::chrono::system_clock::time_point last_accessed;
  std::chrono::system_clock::time_point expires;
  std::size_t messages = 0;
};

/// A message of a stored session; nullopt when it is none.
inline std::optional<message> decode_message(const json& stored) {
  message said;
  if (string_of(stored, "role") == "assistant") said.author = role::assistant;
  const auto& content = member_of(stored, "content");
  if (!content.is_array()) return std::nullopt;
  for (const auto& block : content) {
    const auto type = string_of(block, "type");
    if (type == "text") said.parts.emplace_back(text_part{string_of(block, "text")});
    if (type == "tool_use") {
      said.parts.emplace_back(tool_call_part{string_of(block, "id"), string_of(block, "name"),
                                             member_of(block, "input")});
    }
    if (type == "tool_result") {
      said.parts.emplace_back(
          tool_result_part{string_of(block, "tool_use_id"), string_of(block, "content")});
    }
  }
  return said;
}

/// Keeps sessions by client and id, in memory and, with `options::session_directory`, in a file
/// each. A session is used by one request at a time; others wait in order.
class session_store {
 public:
  class visit;
  using system_time = std::chrono::system_clock::time_point;

  /// Reads what is stored. Throws `std::system_error` when the directory cannot be used.
  explicit session_store(const options& settings) : settings_(settings) {
    if (settings_.session_directory.empty()) return;
    namespace files = std::filesystem;
    const files::path directory = settings_.session_directory;
    const bool own = files::create_directories(directory);
    constexpr auto shared = files::perms::others_write | files::perms::sticky_bit;
    if (!own && (files::status(directory).permissions() & shared) != files::perms::none) {
      throw std::system_error(std::make_error_code(std::errc::permission_denied),
                              "sessions need a directory of their own, not " + directory.string());
    }
    files::permissions(directory, files::perms::owner_all);
    for (const auto& file : files::directory_iterator(directory)) {
      if (file.path().extension() == ".json") load(file.path().string());
    }
  }
  session_store(const session_store&) = delete;
  session_store& operator=(const session_store&) = delete;

  /// The client's sessions, oldest first.
  std::vector<session_info> list(const std::string& client) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    std::vector<session_info> found;
    for (const auto& [key, kept] : sessions_) {
      if (key.first == client && !kept->history.empty()) found.push_back(describe(*kept));
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
      return std::tie(a.created, a.id) < std::tie(b.created, b.id);
    });
    return found;
  }

  /// One of them; asking for it counts as use.
  std::optional<session_info> get(const std::string& client, const std::string& id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    const auto found = sessions_.find({client, id});
    if (found == sessions_.end() || found->second->history.empty()) return std::nullopt;
    found->second->last_accessed = std::chrono::system_clock::now();
    return describe(*found->second);
  }

  /// False when there is none. A request that is using it ends as if nothing had happened.
  bool remove(const std::string& client, const std::string& id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    const auto found = sessions_.find({client, id});
    if (found == sessions_.end() || found->second->history.empty()) return false;
    forget(found);
    return true;
  }

 private:
  using client_and_id = std::pair<std::string, std::string>;

  struct session {
    std::string client;
    std::string id;
    std::string file;  ///< empty: not stored
    std::string system;
    std::vector<message> history;
    system_time created;
    system_time last_accessed;
    bool busy = false;
    std::deque<const wake_signal*> waiting;
  };
  using sessions = std::map<client_and_id, std::shared_ptr<session>>;

  // Everything below needs the lock, but for the files, which only their user writes.

  session_info describe(const session& kept) const {
    return {kept.id, kept.created, kept.last_accessed, kept.last_accessed + settings_.session_ttl,
            kept.history.size()};
  }

  sessions::iterator forget(sessions::iterator gone) {
    if (!gone->second->file.empty()) ::unlink(gone->second->file.c_str());
    return sessions_.erase(gone);
  }

  void sweep() {
    const auto oldest = std::chrono::system_clock::now() - settings_.session_ttl;
    for (auto kept = sessions_.begin(); kept != sessions_.end();) {
      const bool expired = !kept->second->busy && kept->second->last_accessed < oldest;
      kept = expired ? forget(kept) : std::next(kept);
    }
  }

  static std::int64_t to_ms(system_time time) {
    using namespace std::chrono;
    return duration_cast<milliseconds>(time.time_since_epoch()).count();
  }

  static std::string encode(const session& kept) {
    json messages = json::array();
    for (const auto& said : kept.history) {
      json content = json::array();
      for (const auto& part : said.parts) content.push_back(encode_part(part));
      messages.push_back(
          json::object({{"role", said.author == role::user ? "user" : "assistant"},
                        {"content", content}}));
    }
    return dump(json::object({{"version", 1},
                              {"client", kept.client},
                              {"id", kept.id},
                              {"system", kept.system},
                              {"created_ms", to_ms(kept.created)},
                              {"last_accessed_ms", to_ms(kept.last_accessed)},
                              {"messages", messages}}));
  }

  /// Whole or not at all: written beside the file, then put in its place. Needs no lock.
  void write_file(const std::string& path, const std::string& bytes) const {
    const auto fresh = path + ".new";
    unique_fd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const bool written = file && write_all(file.get(), bytes) && ::fsync(file.get()) == 0 &&
                         ::rename(fresh.c_str(), path.c_str()) == 0;
    if (written) return;
    settings_.log.error("session not stored: " + last_system_error().message());
    ::unlink(fresh.c_str());
  }

  /// The session is still the one that its id names.
  bool is_kept(const std::shared_ptr<session>& asked) const {
    const auto found = sessions_.find({asked->client, asked->id});
    return found != sessions_.end() && found->second == asked;
  }

  void load(const std::string& path) {
    unique_fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::string bytes;
    while (file && read_available(file.get(), bytes)) {}
    const json stored = json::parse(bytes, nullptr, false);
    const auto kept = std::make_shared<session>();
    kept->client = string_of(stored, "client");
    kept->id = string_of(stored, "id");
    kept->file = path;
    kept->system = string_of(stored, "system");
    kept->created = system_time(std::chrono::milliseconds(integer_of(stored, "created_ms")));
    kept->last_accessed =
        system_time(std::chrono::milliseconds(integer_of(stored, "last_accessed_ms")));
    for (const auto& said : member_of(stored, "messages")) {
      if (auto decoded = decode_message(said)) kept->history.push_back(std::move(*decoded));
    }
    if (kept->id.empty() || kept->history.empty()) {
      settings_.log.warning("session file skipped, it is not whole: " + path);
      return;
    }
    sessions_[{kept->client, kept->id}] = kept;
  }

  const options& settings_;
  std::mutex mutex_;
  sessions sessions_;
};

/// One request's use of a session. Waits for its turn; its owner polls `fd` meanwhile. One thread;
/// must not outlive the store.
class session_store::visit {
 public:
  visit(session_store& owner, const std::string& client, const std::string& id) : store_(owner) {
    const std::lock_guard<std::mutex> lock(store_.mutex_);
    store_.sweep();
    auto& slot = store_.sessions_[{client, id}];
    const auto now = std::chrono::system_clock::now();
    if (!slot) {
      slot = std::make_shared<session>();
      slot->client = client;
      slot->id = id;
      slot->created = now;
    }
    slot->last_accessed = now;
    session_ = slot;
    entered_ = !session_->busy && session_->waiting.empty();
    if (entered_) {
      session_->busy = true;
    } else {
      session_->waiting.push_back(&wake_);
    }
  }
  visit(const visit&) = delete;
  visit& operator=(const visit&) = delete;

  ~visit() {
    const std::lock_guard<std::mutex> lock(store_.mutex_);
    auto& waiting = session_->waiting;
    if (!entered_) {
      const bool was_next = !session_->busy && waiting.front() == &wake_;
      waiting.erase(std::find(waiting.begin(), waiting.end(), &wake_));
      if (!was_next) return;
    }
    session_->busy = false;
    if (!waiting.empty()) {
      waiting.front()->raise();
    } else if (session_->history.empty() && store_.is_kept(session_)) {
      store_.sessions_.erase({session_->client, session_->id});  // a failed first turn
    }
  }

  /// Readable when it may be worth to `try_enter`.
  int fd() const { return entered_ ? -1 : wake_.fd(); }

  /// True once the session is this request's alone.
  bool try_enter() {
    if (entered_) return true;
    const std::lock_guard<std::mutex> lock(store_.mutex_);
    if (session_->busy || session_->waiting.front() != &wake_) return false;
    session_->waiting.pop_front();
    session_->busy = true;
    entered_ = true;
    return true;
  }

  const std::string& system() const { return session_->system; }
  const std::vector<message>& history() const { return session_->history; }

  /// The session as it is after a turn that went well. One that was deleted meanwhile stays so.
  void commit(std::string system, std::vector<message> history) {
    std::string bytes;
    {
      const std::lock_guard<std::mutex> lock(store_.mutex_);
      session_->system = std::move(system);
      session_->history = std::move(history);
      session_->last_accessed = std::chrono::system_clock::now();
      const auto& directory = store_.settings_.session_directory;
      if (directory.empty() || !store_.is_kept(session_)) return;
      if (session_->file.empty()) {
        session_->file = directory + "/" + text::random_id("", 24) + ".json";
      }
      bytes = encode(*session_);
    }
    store_.write_file(session_->file, bytes);
    const std::lock_guard<std::mutex> lock(store_.mutex_);
    if (!store_.is_kept(session_)) ::unlink(session_->file.c_str());
  }

 private:
  session_store& store_;
  std::shared_ptr<session> session_;
  wake_signal wake_;
  bool entered_ = false;
};

//================================================================================================
// [17] engine - one turn: a session, a process, a deadline, a client who may leave
// uses: errors, options, conversation, events, cli_command, process, worker, pool,
//       sessions | thread-safe
//================================================================================================

/// What a client without a system prompt gets, in place of Claude Code's persona.
constexpr std::string_view neutral_system_prompt = "You are a helpful assistant.";

/// A client that sends replies keeps the history itself: what it sends is the whole conversation,
/// also where it cut or changed it. One that relies on its session sends only what the user says.
inline bool holds_replies(const std::vector<message>& messages) {
  return std::any_of(messages.begin(), messages.end(),
                     [](const message& said) { return said.author == role::assistant; });
}

/// What the client will send back as the assistant's message.
inline message make_reply(const turn_result& result) {
  message said{role::assistant, {}};
  std::string words;
  for (const auto& block : result.blocks) {
    if (block.kind == block_kind::text) words += block.text;
  }
  if (!words.empty()) said.parts.emplace_back(text_part{words});
  return said;
}

/// One turn under way. It is pulled: whoever wants its next event lends the thread that moves the
/// process's bytes, so that a slow client slows the process and a client that leaves ends it, in
/// the queue as well as in mid-answer.
class turn {
 public:
  enum class pulled { arrived, silence, client_left };

  turn(pool& processes, session_store& sessions, turn_request request, const options& settings,
       int client_fd)
      : pool_(processes),
        settings_(settings),
        request_(std::move(request)),
        deadline_(std::chrono::steady_clock::now() + settings.timeout),
        client_fd_(client_fd) {
    if (!request_.session.empty()) session_.emplace(sessions, request_.client, request_.session);
  }

  /// Waits for the next event until `until`. After an event that ends the turn there is none.
  pulled next(event& out, steady_time until) {
    const auto stop_at = std::min(until, deadline_);
    for (;;) {
      if (auto known = known_event()) {
        if (try_again(*known)) continue;
        note(*known);
        out = std::move(*known);
        return pulled::arrived;
      }
      const auto now = std::chrono::steady_clock::now();
      if (now >= deadline_) {
        out = turn_failed{
            api_error(error_kind::timed_out, "no complete answer within " +
                                                 std::to_string(settings_.timeout.count()) +
                                                 " ms (see --timeout)")};
        return pulled::arrived;
      }
      if (now >= stop_at) return pulled::silence;
      if (!wait(stop_at)) return pulled::client_left;
      if (lease_) lease_->worker().pump();
    }
  }

 private:
  /// Longest wait in one go: a process whose pipes a grandchild holds open ends without a sign.
  static constexpr std::chrono::milliseconds longest_wait{100};

  std::optional<event> known_event() {
    try {
      if (!has_process()) return std::nullopt;
    } catch (const api_error& failure) {
      return turn_failed{failure};
    } catch (const std::exception& fault) {  // no descriptor left, for one
      return turn_failed{api_error(error_kind::internal, fault.what())};
    }
    return lease_->worker().pop();
  }

  /// Goes from the session's queue to the pool's and on to a process, as far as it can.
  bool has_process() {
    if (lease_) return true;
    if (session_ && !session_->try_enter()) return false;
    if (!ticket_) {
      compose();
      ticket_.emplace(pool_, process_demand{{request_.model}, request_.client, trace_});
    }
    auto taken = ticket_->try_take();
    if (!taken) return false;
    ticket_.reset();
    lease_.emplace(std::move(*taken));
    const char* source = lease_->known_replies() > 0 ? "the conversation's"
                         : lease_->was_waiting()     ? "a spare"
                                                     : "a new";
    settings_.log.debug(std::string("turn on ") + source + " process, model " + request_.model);
    // Messages alternate and the user begins, so each reply stands for two of them.
    lease_->worker().begin(request_, 2 * lease_->known_replies());
    return true;
  }

  /// Puts the session's history before what is new, and settles what the client left open.
  void compose() {
    if (composed_) return;
    composed_ = true;
    if (session_) {
      if (request_.system.empty()) request_.system = session_->system();
      if (!holds_replies(request_.messages)) {
        const auto& history = session_->history();
        request_.messages.insert(request_.messages.begin(), history.begin(), history.end());
        normalize(request_.messages);
      }
    }
    given_system_ = request_.system;
    if (request_.model.empty()) request_.model = settings_.default_model;
    if (request_.system.empty()) request_.system = neutral_system_prompt;
    trace_ = make_trace(request_);
  }

  /// A process that waited may have died before the request came; then another answers. Once.
  bool try_again(const event& what) {
    const bool lost = std::holds_alternative<turn_failed>(what) && !told_ && lease_ &&
                      lease_->worker().lost() && lease_->was_waiting() && !tried_again_;
    if (!lost) return false;
    tried_again_ = true;
    lease_.reset();
    return true;
  }

  /// Remembers the answer, and at its end lets session and process go on with it.
  void note(const event& what) {
    told_ = true;
    if (std::holds_alternative<turn_failed>(what)) return;
    answer_.add(what);
    if (!ends_turn(what)) return;
    const auto reply = make_reply(answer_.result());
    append_message(trace_, reply);
    if (session_) {
      request_.messages.push_back(reply);
      session_->commit(given_system_, std::move(request_.messages));
    }
    if (lease_->worker().can_go_on()) lease_->keep(std::move(trace_.words));
    lease_.reset();
    session_.reset();
  }

  /// Waits for bytes, or for a place. False when the client has gone.
  bool wait(steady_time until) {
    entries_.clear();
    if (lease_) {
      lease_->worker().add_poll_entries(entries_);
    } else {
      entries_.push_back({ticket_ ? ticket_->fd() : session_->fd(), POLLIN, 0});
    }
#ifdef POLLRDHUP
    constexpr short gone = POLLRDHUP | POLLHUP | POLLERR | POLLNVAL;
    entries_.push_back({client_fd_, POLLRDHUP, 0});
#else
    constexpr short gone = POLLHUP | POLLERR | POLLNVAL;
    entries_.push_back({client_fd_, 0, 0});
#endif
    const auto latest = std::chrono::steady_clock::now() + longest_wait;
    ::poll(entries_.data(), static_cast<nfds_t>(entries_.size()),
           poll_timeout(std::min(until, latest)));
    return (entries_.back().revents & gone) == 0;
  }

  pool& pool_;
  const options& settings_;
  turn_request request_;
  std::string given_system_;  ///< the client's own, for the session
  conversation_trace trace_;
  steady_time deadline_;
  int client_fd_;
  std::optional<session_store::visit> session_;
  std::optional<pool::ticket> ticket_;
  std::optional<lease> lease_;
  collector answer_;
  bool composed_ = false;
  bool told_ = false;
  bool tried_again_ = false;
  std::vector<pollfd> entries_;
};

/// Turns requests into turns.
class engine {
 public:
  engine(const options& settings, pool& processes, session_store& sessions)
      : settings_(settings), pool_(processes), sessions_(sessions) {}

  /// Nothing can fail before the turn is pulled. `client_fd` is the client's socket, watched for
  /// its end; -1 for none.
  std::unique_ptr<turn> start(turn_request request, int client_fd) {
    return std::make_unique<turn>(pool_, sessions_, std::move(request), settings_, client_fd);
  }

 private:
  const options& settings_;
  pool& pool_;
  session_store& sessions_;
};

//================================================================================================
// [18] guard - who may come in: client keys, Host and Origin
// uses: text, errors, options | pure
//================================================================================================

/// What of a request decides whether it is let in.
struct credentials {
  std::string host;           ///< `Host` header
  std::string origin;         ///< `Origin` header
  std::string authorization;  ///< `Authorization` header
  std::string api_key;        ///< `X-Api-Key` header
};

/// `example.org:8000` and `[::1]:8000` without the port and brackets, in lower case. What is no
/// host and port stays as it is, and so is nobody's name.
inline std::string host_name(std::string_view host) {
  const bool bracketed = text::starts_with(host, "[");
  const auto end = bracketed ? host.find(']') : std::min(host.find(':'), host.size());
  if (end == std::string_view::npos) return std::string(host);
  const auto rest = host.substr(end + (bracketed ? 1 : 0));
  const bool port = text::starts_with(rest, ":") && text::try_number<int>(rest.substr(1));
  if (!rest.empty() && !port) return std::string(host);
  return text::to_lower(host.substr(bracketed ? 1 : 0, end - (bracketed ? 1 : 0)));
}

/// The key that a client presents: `Authorization: Bearer KEY` or `X-Api-Key: KEY`.
inline std::string_view presented_key(const credentials& shown) {
  constexpr std::string_view scheme = "bearer ";
  const std::string_view value = shown.authorization;
  if (text::to_lower(value.substr(0, scheme.size())) == scheme) {
    return text::trim(value.substr(scheme.size()));
  }
  return text::trim(shown.api_key);
}

/// All keys are compared, so that the time tells nothing.
inline bool is_known_key(std::string_view presented, const std::vector<std::string>& keys) {
  bool known = false;
  for (const auto& key : keys) known = text::constant_time_equal(presented, key) || known;
  return known;
}

/// A name that a web page cannot make ours by DNS: an address, a loopback name, or the one we were
/// told to listen on.
inline bool is_own_host(std::string_view host, const options& settings) {
  const auto name = host_name(host);
  return name.empty() || is_ip_literal(name) || name == "localhost" ||
         name == host_name(settings.host);
}

/// The origin of a page that may talk to us: served by this machine.
inline bool is_own_origin(std::string_view origin) {
  const auto scheme_end = origin.find("://");
  if (scheme_end == std::string_view::npos) return false;
  return is_loopback_name(host_name(origin.substr(scheme_end + 3)));
}

/// A name for whoever holds that key, which does not tell the key (FNV-1a); empty without one.
inline std::string client_name(std::string_view key) {
  if (key.empty()) return {};
  std::uint64_t hash = 14695981039346656037ULL;
  for (const char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return std::to_string(hash);
}

/// Names the client, or throws a 401 or 403 for whoever may not come in. A client with a key proves
/// more than its Host header does; without keys only names of this machine are answered (DNS
/// rebinding).
inline std::string check_access(const credentials& shown, const options& settings,
                                bool needs_key) {
  if (!shown.origin.empty() && !is_own_origin(shown.origin)) {
    throw api_error(error_kind::permission, "pages of origin '" + text::repair_utf8(shown.origin) +
                                                "' may not use this proxy");
  }
  const auto key = presented_key(shown);
  const bool known = is_known_key(key, settings.api_keys);
  if (!known && !is_own_host(shown.host, settings)) {
    throw api_error(error_kind::permission,
                    "this proxy does not answer to the host name '" +
                        text::repair_utf8(shown.host) + "'; use its address or a client key");
  }
  if (known) return client_name(key);
  if (!needs_key || settings.api_keys.empty()) return {};
  throw api_error(error_kind::authentication,
                  key.empty() ? "Missing API key: send 'Authorization: Bearer KEY' or 'x-api-key'"
                              : "Invalid API key");
}

//================================================================================================
// [19] status - what is known of the CLI and its login
// uses: text, json_access, options, events, cli_command, process, worker, pool | thread-safe
//================================================================================================

constexpr std::array<int, 3> oldest_cli = {2, 1, 120};

/// What was found out about `claude` at the start. Empty members are not known (yet).
struct cli_facts {
  std::string version;
  std::optional<bool> logged_in;
  std::vector<std::string> models;  ///< ids and aliases that the CLI reports
  std::string problem;              ///< why no request can be answered, and what to do
  bool too_old = false;             ///< the problem is one that no retry can mend
};

/// Holds the facts for all threads.
class status_board {
 public:
  cli_facts get() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return facts_;
  }

  void set(cli_facts facts) {
    const std::lock_guard<std::mutex> lock(mutex_);
    facts_ = std::move(facts);
  }

 private:
  mutable std::mutex mutex_;
  cli_facts facts_;
};

/// `2.1.330 (Claude Code)` to numbers; nullopt when it is no version.
inline std::optional<std::array<int, 3>> parse_version(std::string_view said) {
  const auto words = text::split(said, ' ');
  const auto parts = text::split(words.empty() ? std::string() : words.front(), '.');
  if (parts.size() != 3) return std::nullopt;
  std::array<int, 3> version{};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto digits = std::min(parts[i].find_first_not_of("0123456789"), parts[i].size());
    const auto number = text::try_number<int>(parts[i].substr(0, digits));
    if (!number) return std::nullopt;
    version[i] = *number;
  }
  return version;
}

/// What the chosen method lacks in the environment, a sentence each.
inline std::vector<std::string> missing_credentials(const options& settings) {
  const auto& variables = settings.environment;
  const auto lacks = [&](const char* name) { return value_or(variables, name).empty(); };
  std::vector<std::string> missing;
  const auto need = [&](bool lacking, const char* what) {
    if (lacking) missing.emplace_back(std::string(what) + " environment variable not set");
  };
  switch (resolve_auth(settings)) {
    case auth_method::api_key:
      need(lacks("ANTHROPIC_API_KEY") && lacks("ANTHROPIC_AUTH_TOKEN"), "ANTHROPIC_API_KEY");
      break;
    case auth_method::bedrock:
      need(lacks("AWS_REGION") && lacks("AWS_DEFAULT_REGION"), "AWS_REGION or AWS_DEFAULT_REGION");
      break;
    case auth_method::vertex:
      need(lacks("ANTHROPIC_VERTEX_PROJECT_ID"), "ANTHROPIC_VERTEX_PROJECT_ID");
      need(lacks("CLOUD_ML_REGION"), "CLOUD_ML_REGION");
      break;
    case auth_method::cli:
    case auth_method::detect: break;
  }
  return missing;
}

/// Asks `claude --version`.
inline void inspect_version(const options& settings, const child_guard& guard,
                            const wake_signal& stop, cli_facts& facts) {
  command ask{{settings.claude_path, "--version"}, child_environment(settings), {}};
  const auto said = run_command(ask, guard, std::chrono::seconds(10), stop);
  const auto version = parse_version(said.output);
  if (!version) {
    facts.problem = settings.claude_path + " does not tell its version (" + said.ending + ")";
    return;
  }
  facts.version = text::split(said.output, ' ').front();
  if (*version >= oldest_cli) return;
  facts.too_old = true;
  facts.problem = "claude " + facts.version +
                  " is too old; upgrade to 2.1.120 or later with "
                  "`npm install -g @anthropic-ai/claude-code@latest`";
}

/// Reads models and login out of the CLI's answer to `initialize`.
inline void read_introduction(const json& introduction, cli_facts& facts) {
  const auto& models = member_of(introduction, "models");
  for (std::size_t i = 0; models.is_array() && i < models.size(); ++i) {
    for (const char* name : {"value", "resolvedModel"}) {
      const auto id = string_of(models[i], name);
      if (!id.empty() && id != "default") facts.models.push_back(id);
    }
  }
  const auto& account = member_of(introduction, "account");
  const auto token = string_of(account, "tokenSource");
  const auto provider = string_of(account, "apiProvider");
  facts.logged_in = !string_of(account, "apiKeySource").empty() ||
                    (!token.empty() && token != "none") ||
                    (!provider.empty() && provider != "firstParty");
}

/// Asks one process for its models and account. It is taken from the pool, so it counts.
inline void inspect_account(const options& settings, pool& processes, const wake_signal& stop,
                            cli_facts& facts) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::vector<pollfd> entries;
  pool::ticket place(processes, {{settings.default_model}, {}, {}});
  std::optional<lease> process;
  while (!process) {
    if (auto taken = place.try_take()) process.emplace(std::move(*taken));
    if (std::chrono::steady_clock::now() >= deadline || stop.is_raised()) return;
    pollfd entry{place.fd(), POLLIN, 0};
    if (!process) ::poll(&entry, 1, 50);
  }
  auto& asked = process->worker();
  asked.begin_introduction();
  while (asked.introduction().is_null()) {
    if (std::chrono::steady_clock::now() >= deadline || stop.is_raised()) return;
    if (const auto failure = asked.pop()) {
      if (const auto* failed = std::get_if<turn_failed>(&*failure)) {
        facts.problem = failed->error.message;
      }
      return;
    }
    entries.clear();
    asked.add_poll_entries(entries);
    ::poll(entries.data(), static_cast<nfds_t>(entries.size()), 50);
    asked.pump();
  }
  read_introduction(asked.introduction(), facts);
  if (facts.logged_in == false) {
    facts.problem = "claude is not logged in; run `claude auth login` as the user of this proxy, "
                    "or start it with ANTHROPIC_API_KEY set";
  }
}

//================================================================================================
// [20] http - connections, routes, streaming; the only section that names httplib
// uses: text, errors, log, json_access, options, events, sse, openai_chat, catalog, cli_command,
//       process, pool, sessions, engine, guard, status | thread-safe
//================================================================================================

/// Listening sockets of a host and port; port 0 takes any. Throws `std::system_error`.
inline std::vector<unique_fd> listen_on(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int failed = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (failed != 0) {
    throw std::system_error(std::make_error_code(std::errc::address_not_available),
                            "host '" + host + "': " + ::gai_strerror(failed));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  std::vector<unique_fd> listeners;
  for (const auto* address = found; address != nullptr; address = address->ai_next) {
    unique_fd socket(::socket(address->ai_family, SOCK_STREAM, 0));
    if (!socket) continue;
    const int on = 1;
    ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
    ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ai_family == AF_INET6) {
      ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    }
    if (::bind(socket.get(), address->ai_addr, address->ai_addrlen) != 0 ||
        ::listen(socket.get(), 1024) != 0) {
      const bool other_may_do = errno == EADDRNOTAVAIL && address->ai_next != nullptr;
      if (other_may_do) continue;  // `localhost` where IPv6 is off
      throw std::system_error(last_system_error(), host + ":" + std::to_string(port));
    }
    set_nonblocking(socket.get());
    listeners.push_back(std::move(socket));
    if (port == 0) break;  // a second address would get another port
  }
  return listeners;
}

inline int port_of(const unique_fd& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size);
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);
  const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);
  return ntohs(address.ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port);
}

/// One client's connection, as httplib reads and writes it. Bounds what httplib does not: the time
/// and the bytes a request's head may take. Owned by the thread that serves it.
///
/// No `override`: the virtual functions differ between the versions of httplib.
class connection final : public httplib::Stream {
 public:
  explicit connection(unique_fd socket) : socket_(std::move(socket)) {
    const int on = 1;
    ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    set_nonblocking(socket_.get());
  }

  /// Waits for the next request's first byte. False when there will be none.
  bool wait_for_request(const wake_signal& stop) {
    begin_ = next_;
    if (next_ == buffer_.size()) {
      buffer_.clear();
      begin_ = next_ = 0;
      std::array<pollfd, 2> fds{{{socket_.get(), POLLIN, 0}, {stop.fd(), POLLIN, 0}}};
      if (::poll(fds.data(), fds.size(), keep_alive_ms) <= 0 || fds[0].revents == 0) return false;
    }
    in_head_ = true;
    deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(head_ms);
    return true;
  }

  /// From here on bytes are the body's.
  void end_head() { in_head_ = false; }

  /// The rest of this request will not be read, so no other can follow on this connection.
  void close_after_reply() { closing_ = true; }
  bool is_closing() const { return closing_; }
  int fd() const { return socket_.get(); }

  /// Lets the client read the answer although bytes of its request were never read: closing at
  /// once would reset the connection and take the answer away.
  void linger() {
    ::shutdown(socket_.get(), SHUT_WR);
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(linger_ms);
    std::array<char, 65536> ignored;
    while (std::chrono::steady_clock::now() < until) {
      if (!wait(POLLIN, poll_timeout(until))) return;
      const ssize_t count = ::recv(socket_.get(), ignored.data(), ignored.size(), 0);
      if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) return;
    }
  }

  // What httplib asks of a stream, in all its versions.

  bool is_readable() const { return next_ < buffer_.size() || wait(POLLIN, 0); }
  bool is_writable() const { return is_peer_alive(); }
  bool wait_readable() const { return next_ < buffer_.size() || wait(POLLIN, body_ms); }
  bool wait_writable() const { return is_peer_alive(); }
  bool is_peer_alive() const {
#ifdef POLLRDHUP
    return !wait(POLLRDHUP, 0);
#else
    return !wait(0, 0);
#endif
  }
  ssize_t read(char* bytes, std::size_t size) {
    if (next_ == buffer_.size() && !fill()) return -1;
    const auto count = std::min(size, buffer_.size() - next_);
    std::memcpy(bytes, buffer_.data() + next_, count);
    next_ += count;
    if (!in_head_ || next_ - begin_ <= max_head_bytes) return static_cast<ssize_t>(count);
    closing_ = true;
    return -1;
  }
  ssize_t write(const char* bytes, std::size_t size) {
    std::size_t sent = 0;
    while (sent < size) {
      const ssize_t count = ::send(socket_.get(), bytes + sent, size - sent, 0);
      if (count > 0) sent += static_cast<std::size_t>(count);
      if (count >= 0 || errno == EINTR) continue;
      if (errno != EAGAIN || !wait(POLLOUT, write_ms)) return -1;
    }
    return static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const {
    describe(::getpeername, ip, port);
  }
  void get_local_ip_and_port(std::string& ip, int& port) const {
    describe(::getsockname, ip, port);
  }
  socket_t socket() const { return INVALID_SOCKET; }  // httplib shall not touch it
  time_t duration() const { return 0; }

 private:
  static constexpr int keep_alive_ms = 75'000;
  static constexpr int head_ms = 30'000;
  static constexpr int body_ms = 30'000;
  static constexpr int write_ms = 60'000;
  static constexpr int linger_ms = 1'000;
  static constexpr std::size_t max_head_bytes = 64 * 1024;

  bool wait(short events, int timeout_ms) const {
    pollfd entry{socket_.get(), events, 0};
    int ready = 0;
    do {
      ready = ::poll(&entry, 1, timeout_ms);
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
  }

  bool fill() {
    const int timeout = in_head_ ? poll_timeout(deadline_) : body_ms;
    if (!wait(POLLIN, timeout)) return false;
    if (!in_head_) {
      buffer_.clear();
      next_ = begin_ = 0;
    }
    std::array<char, 16384> chunk;
    const ssize_t count = ::recv(socket_.get(), chunk.data(), chunk.size(), 0);
    if (count <= 0) return count < 0 && (errno == EAGAIN || errno == EINTR) && fill();
    buffer_.append(chunk.data(), static_cast<std::size_t>(count));
    return true;
  }

  template <class Name>
  void describe(Name name, std::string& ip, int& port) const {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    std::array<char, NI_MAXHOST> host{};
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (name(socket_.get(), generic, &size) != 0) return;
    if (::getnameinfo(generic, size, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) == 0) {
      ip = host.data();
    }
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);
    port = ntohs(address.ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port);
  }

  unique_fd socket_;
  std::string buffer_;     ///< bytes of this request and perhaps of the next
  std::size_t begin_ = 0;  ///< where this request's head begins
  std::size_t next_ = 0;   ///< what httplib has not read yet
  bool in_head_ = true;
  bool closing_ = false;
  steady_time deadline_{};
};

/// What the routes need. Owned by `server`, which outlives every connection.
struct services {
  const options& settings;
  pool& processes;
  engine& turns;
  session_store& sessions;
  status_board& status;
  const wake_signal& stop;
};

/// One request on its way through a route.
struct exchange {
  connection& client;
  const httplib::Request& request;
  httplib::Response& response;
  const httplib::ContentReader* body;  ///< null for methods without one
  std::string id;
  std::string client_id = {};  ///< see `client_name`
  std::string path = {};       ///< without `/v1` and a last slash
  std::string failure = {};    ///< for the log
  steady_time started = std::chrono::steady_clock::now();
};

/// httplib's parser, writer and nothing else: it neither listens nor makes threads here.
class http_service : public httplib::Server {
 public:
  explicit http_service(const services& given) : services_(given) {
    const auto serve_body = [this](const httplib::Request& request, httplib::Response& response,
                                   const httplib::ContentReader& body) {
      dispatch(request, response, &body);
    };
    constexpr const char* any = "[^]*";
    Post(any, serve_body);
    Put(any, serve_body);
    Patch(any, serve_body);
    Delete(any, serve_body);
    // Whatever takes no body is answered before httplib could read one.
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      if (takes_body(request.method)) return HandlerResponse::Unhandled;
      if (announces_body(request)) current()->close_after_reply();
      dispatch(request, response, nullptr);
      return HandlerResponse::Handled;
    });
    svr_sock_ = 0;  // httplib cuts streams short while it thinks that it does not listen
    set_keep_alive_timeout(75);
    set_keep_alive_max_count(10'000);
    // Only what never reached `dispatch` is still without a body here: a broken request.
    set_error_handler([](const httplib::Request&, httplib::Response& response) {
      if (!response.body.empty()) return;
      current()->close_after_reply();
      const api_error error(error_kind::invalid_request, "this is not a valid HTTP request");
      response.set_content(openai_chat::render_error(error), json_type);
    });
  }

  /// Serves one connection to its end, in this thread.
  void serve_connection(connection& client) {
    current() = &client;
    while (client.wait_for_request(services_.stop)) {
      bool closed = false;
      const bool alive = process_one(client, closed, 0);
      if (!alive || closed || client.is_closing()) break;
    }
    current() = nullptr;
    if (client.is_closing()) client.linger();
  }

  http_service(const http_service&) = delete;
  http_service& operator=(const http_service&) = delete;

 private:
  static constexpr const char* json_type = "application/json";
  static constexpr std::chrono::seconds longest_stall{30};

  using handler = void (http_service::*)(exchange&);

  struct route {
    std::string_view method;
    std::string_view path;  ///< without `/v1`; a last '*' stands for the rest
    bool needs_key;
    handler answer;
  };

  static const std::vector<route>& routes() {
    static const std::vector<route> table = {
        {"POST", "/chat/completions", true, &http_service::answer_chat},
        {"GET", "/models", true, &http_service::answer_models},
        {"GET", "/models/*", true, &http_service::answer_model},
        {"GET", "/sessions", true, &http_service::answer_sessions},
        {"GET", "/sessions/stats", true, &http_service::answer_session_stats},
        {"GET", "/sessions/*", true, &http_service::answer_session},
        {"DELETE", "/sessions/*", true, &http_service::delete_session},
        {"GET", "/auth/status", true, &http_service::answer_auth_status},
        {"GET", "/health", false, &http_service::answer_health},
        {"GET", "/version", false, &http_service::answer_version},
    };
    return table;
  }

  /// The connection that this thread serves: httplib hands it to no handler.
  static connection*& current() {
    thread_local connection* served = nullptr;
    return served;
  }

  /// What httplib would do with these headers is not wanted: compress a stream, cut an answer into
  /// ranges, parse a form, or wait for a body that was not announced.
  static void prepare(httplib::Request& request) {
    current()->end_head();
    for (const char* name : {"Accept-Encoding", "Range", "Content-Type"}) {
      request.headers.erase(name);
    }
    request.ranges.clear();
    if (!request.has_header("Content-Length") && !request.has_header("Transfer-Encoding")) {
      request.headers.emplace("Content-Length", "0");
    }
  }

  /// httplib up to 0.14.
  template <class Self = http_service>
  auto process_one(connection& client, bool& closed, int)
      -> decltype(std::declval<Self&>().process_request(
          client, false, closed, std::function<void(httplib::Request&)>())) {
    return static_cast<Self*>(this)->process_request(client, is_stopping(), closed, prepare);
  }

  /// httplib from 0.15 on wants the addresses beside the stream.
  template <class Self = http_service>
  bool process_one(connection& client, bool& closed, long) {
    std::string remote;
    std::string local;
    int remote_port = 0;
    int local_port = 0;
    client.get_remote_ip_and_port(remote, remote_port);
    client.get_local_ip_and_port(local, local_port);
    return static_cast<Self*>(this)->process_request(client, remote, remote_port, local, local_port,
                                                     is_stopping(), closed, prepare);
  }

  bool is_stopping() const { return services_.stop.is_raised(); }

  static bool takes_body(std::string_view method) {
    return method == "POST" || method == "PUT" || method == "PATCH" || method == "DELETE";
  }

  static bool announces_body(const httplib::Request& request) {
    return request.has_header("Transfer-Encoding") ||
           request.get_header_value("Content-Length") != "0";
  }

  // From a request to its route, and the one place where exceptions end.

  void dispatch(const httplib::Request& request, httplib::Response& response,
                const httplib::ContentReader* body) {
    exchange now{*current(), request, response, body, request_id(request)};
    response.set_header("x-request-id", now.id);
    response.set_header("openai-version", "2020-10-01");
    try {
      allow_origin(now);
      enter(now);
    } catch (const api_error& error) {
      answer_error(now, error);
    } catch (const std::exception& fault) {
      services_.settings.log.error("request " + now.id + ": " + fault.what());
      answer_error(now, api_error(error_kind::internal, "internal error; see the proxy's log"));
    }
    if (now.body != nullptr && announces_body(request)) now.client.close_after_reply();
    response.set_header("openai-processing-ms", std::to_string(elapsed_ms(now)));
    if (!response.content_provider_) log_request(now, response.status, now.failure);
  }

  void enter(exchange& now) {
    const bool preflight = now.request.method == "OPTIONS";
    now.path = canonical_path(now.request);
    const auto* found = find_route(now.request.method, now.path);
    const credentials shown{now.request.get_header_value("Host"),
                            now.request.get_header_value("Origin"),
                            now.request.get_header_value("Authorization"),
                            now.request.get_header_value("X-Api-Key")};
    const bool needs_key = !preflight && (found == nullptr || found->needs_key);
    now.client_id = check_access(shown, services_.settings, needs_key);
    if (preflight) {
      now.response.status = 204;
    } else if (found != nullptr) {
      now.response.status = 200;
      (this->*found->answer)(now);
    } else {
      refuse_route(now);
    }
  }

  /// Without `/v1` and without a last slash, but with one that was percent-encoded: it belongs to
  /// an id.
  static std::string canonical_path(const httplib::Request& request) {
    std::string_view path = request.path;
    const auto target = std::string_view(request.target).substr(0, request.target.find('?'));
    if (text::starts_with(path, "/v1/")) path.remove_prefix(3);
    const bool slash = !target.empty() && target.back() == '/';
    if (path.size() > 1 && slash) path.remove_suffix(1);
    return std::string(path);
  }

  static bool matches(const route& row, std::string_view path) {
    if (row.path.back() != '*') return row.path == path;
    const auto stem = row.path.substr(0, row.path.size() - 1);
    return text::starts_with(path, stem) && path.size() > stem.size();
  }

  static const route* find_route(std::string_view method, std::string_view path) {
    if (method == "HEAD") method = "GET";
    for (const auto& row : routes()) {
      if (row.method == method && matches(row, path)) return &row;
    }
    return nullptr;
  }

  [[noreturn]] static void refuse_route(exchange& now) {
    std::vector<std::string> allowed;
    std::vector<std::string> known;
    for (const auto& row : routes()) {
      if (matches(row, now.path)) allowed.emplace_back(row.method);
      known.push_back(std::string(row.method) + " /v1" + std::string(row.path));
    }
    if (allowed.empty()) {
      throw api_error(error_kind::not_found, "unknown path " + text::repair_utf8(now.path) +
                                                 "; this server has " + text::join(known, ", "));
    }
    now.response.set_header("Allow", text::join(allowed, ", "));
    throw api_error(error_kind::method_not_allowed, "method " + now.request.method +
                                                        " is not allowed here; use " +
                                                        text::join(allowed, " or "));
  }

  /// The client's id if it is harmless to repeat, else a new one.
  static std::string request_id(const httplib::Request& request) {
    const auto given = request.get_header_value("X-Request-Id");
    const auto harmless = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
    };
    const bool keep = !given.empty() && given.size() <= 128 &&
                      std::all_of(given.begin(), given.end(), harmless);
    return keep ? given : text::random_id("req_", 24);
  }

  /// Cross-origin headers for pages of this machine; others are refused by the guard.
  static void allow_origin(exchange& now) {
    const auto origin = now.request.get_header_value("Origin");
    if (origin.empty() || !is_own_origin(origin)) return;
    now.response.set_header("Access-Control-Allow-Origin", printable(origin));
    now.response.set_header("Vary", "Origin");
    now.response.set_header("Access-Control-Expose-Headers",
                            "x-request-id, x-ignored-params, retry-after, openai-processing-ms");
    if (now.request.method != "OPTIONS") return;
    now.response.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
    now.response.set_header("Access-Control-Max-Age", "600");
    const auto wanted = now.request.get_header_value("Access-Control-Request-Headers");
    if (!wanted.empty()) {
      now.response.set_header("Access-Control-Allow-Headers", printable(wanted));
    }
  }

  /// Header values come percent-decoded from older httplib: no line end may be echoed.
  static std::string printable(std::string value) {
    value.erase(std::remove_if(value.begin(), value.end(),
                               [](char c) { return c < ' ' || c > '~'; }),
                value.end());
    return value;
  }

  static void answer_error(exchange& now, const api_error& error) {
    now.response.status = http_status(error.kind);
    if (!error.code.empty()) now.failure = " " + error.code;
    now.response.set_content(openai_chat::render_error(error), json_type);
    const bool says_when = error.kind == error_kind::rate_limited ||
                           error.kind == error_kind::unavailable ||
                           error.kind == error_kind::overloaded;
    if (says_when) {
      using namespace std::chrono;
      const auto wait = error.retry_after.value_or(seconds(error.retry_is_futile ? 30 : 1));
      now.response.set_header("Retry-After", std::to_string(ceil<seconds>(wait).count()));
      now.response.set_header("retry-after-ms", std::to_string(wait.count()));
    }
    if (error.retry_is_futile) now.response.set_header("x-should-retry", "false");
    if (error.kind == error_kind::authentication) {
      now.response.set_header("WWW-Authenticate", "Bearer");
    }
  }

  static std::int64_t elapsed_ms(const exchange& now) {
    using namespace std::chrono;
    return duration_cast<milliseconds>(steady_clock::now() - now.started).count();
  }

  void log_request(const exchange& now, int status, const std::string& more) const {
    services_.settings.log.info(now.id + " " + now.request.method + " " +
                                printable(now.request.path) + " " + std::to_string(status) + " " +
                                std::to_string(elapsed_ms(now)) + " ms" + more);
  }

  /// The whole body. Throws a 413 over the limit, without reading on.
  std::string read_body(exchange& now) const {
    const auto limit = services_.settings.max_body_bytes;
    const auto refuse = [&] {
      return api_error(error_kind::too_large, "the request body is too large; the limit is " +
                                                  std::to_string(limit) + " bytes");
    };
    const auto announced = now.request.get_header_value("Content-Length");
    const auto encoding = text::to_lower(now.request.get_header_value("Transfer-Encoding"));
    const bool chunked = encoding == "chunked";
    const auto length = text::try_number<std::uint64_t>(announced);
    const bool doubtful = now.request.get_header_value_count("Content-Length") > 1 ||
                          (!encoding.empty() && (!chunked || !announced.empty()));
    if (doubtful || (!chunked && !length)) {
      throw api_error(error_kind::invalid_request,
                      "the length of the body is not told, or told in two ways");
    }
    if (!chunked && *length > limit) throw refuse();
    std::string bytes;
    bool fits = true;
    const bool whole = (*now.body)([&](const char* data, std::size_t size) {
      fits = bytes.size() + size <= limit;
      if (fits) bytes.append(data, size);
      return fits;
    });
    if (!fits) throw refuse();
    if (!whole) {
      throw api_error(error_kind::invalid_request, "the request body did not arrive whole");
    }
    now.body = nullptr;
    return bytes;
  }

  // The routes.

  void answer_chat(exchange& now) { answer_turn(now, openai_chat::dialect); }

  void answer_turn(exchange& now, const surface& dialect) {
    using namespace std::chrono;
    const auto created = duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
    auto parsed = dialect.parse(parse_body(read_body(now)), {text::random_id("", 24), created});
    if (!parsed.turn.ignored_params.empty()) {
      now.response.set_header("x-ignored-params", text::join(parsed.turn.ignored_params, ", "));
    }
    const bool stream = parsed.turn.stream;
    parsed.turn.client = now.client_id;
    if (parsed.turn.session.empty() && now.request.has_header("X-Session-Id")) {
      const json id = now.request.get_header_value("X-Session-Id");
      parsed.turn.session = parse_session_id(reader(id, "X-Session-Id"));
    }
    auto running = services_.turns.start(std::move(parsed.turn), now.client.fd());
    if (stream) {
      answer_stream(now, std::move(running), std::move(parsed.reply));
    } else {
      answer_whole(now, *running, *parsed.reply);
    }
  }

  static void answer_whole(exchange& now, turn& running, const reply& writer) {
    collector answer;
    event next;
    do {
      if (running.next(next, steady_time::max()) == turn::pulled::client_left) {
        return abandon(now);
      }
      answer.add(next);
    } while (!ends_turn(next));
    now.response.set_content(writer.render(answer.result()), json_type);
  }

  /// Nobody reads this answer; nginx's number for the log.
  static void abandon(exchange& now) {
    now.response.status = 499;
    now.client.close_after_reply();
  }

  /// A stream under way, owned by the response that it fills.
  struct open_stream {
    std::unique_ptr<turn> running;
    std::unique_ptr<reply> writer;
    std::optional<event> first;  ///< what came before the status line was sent
    std::chrono::milliseconds keep_alive;
  };

  /// Waits for the first event before the status line, so that a failure is a real status; but not
  /// longer than a client's patience with silence.
  void answer_stream(exchange& now, std::unique_ptr<turn> running, std::unique_ptr<reply> writer) {
    const auto stream = std::make_shared<open_stream>();
    stream->running = std::move(running);
    stream->writer = std::move(writer);
    stream->keep_alive = services_.settings.keep_alive_interval;
    event first;
    const auto patience = std::chrono::steady_clock::now() + stream->keep_alive;
    const auto got = stream->running->next(first, patience);
    if (got == turn::pulled::client_left) return abandon(now);
    if (got == turn::pulled::arrived) {
      if (const auto* failed = std::get_if<turn_failed>(&first)) throw failed->error;
      stream->first = std::move(first);
    }
    now.response.set_header("Cache-Control", "no-cache");
    now.response.set_header("X-Accel-Buffering", "no");
    now.response.set_chunked_content_provider(
        "text/event-stream",
        [this, stream, id = now.id, started = now.started](std::size_t, httplib::DataSink& sink) {
          const char* ending = run_stream(*stream, sink);
          stream->running.reset();
          using namespace std::chrono;
          const auto took = duration_cast<milliseconds>(steady_clock::now() - started).count();
          services_.settings.log.info(id + " stream " + ending + " " + std::to_string(took) +
                                      " ms");
          return *ending == 'd';
        });
  }

  /// Writes events until the turn ends. What is known already goes out in one piece.
  static const char* run_stream(open_stream& stream, httplib::DataSink& sink) {
    event next;
    auto got = turn::pulled::silence;
    if (stream.first) {
      next = std::move(*stream.first);
      got = turn::pulled::arrived;
    }
    for (bool ended = false; !ended;) {
      std::string out;
      if (got == turn::pulled::silence) stream.writer->write_keep_alive(out);
      while (got == turn::pulled::arrived && !ended) {
        stream.writer->write(next, out);
        ended = ends_turn(next);
        if (!ended) got = stream.running->next(next, steady_time::min());
      }
      if (!out.empty() && !sink.write(out.data(), out.size())) return "client left";
      if (ended) break;
      got = stream.running->next(next, std::chrono::steady_clock::now() + stream.keep_alive);
      if (got == turn::pulled::client_left) return "client left";
    }
    sink.done();
    return "done";
  }

  /// What a route's '*' stands for.
  static std::string last_of_path(const exchange& now) {
    return now.path.substr(now.path.find('/', 1) + 1);
  }

  std::vector<model_entry> catalog() const {
    return make_catalog(services_.settings.default_model, services_.status.get().models);
  }

  void answer_models(exchange& now) {
    now.response.set_content(dump(render_models(catalog())), json_type);
  }

  /// Any id is passed on to the CLI, so any is described.
  void answer_model(exchange& now) {
    const json id = last_of_path(now);
    const auto model = parse_model(reader(id, "model"));
    now.response.set_content(dump(render_model({model, release_time(model)})), json_type);
  }

  static json render_session(const session_info& kept) {
    return json::object({{"session_id", kept.id},
                         {"created_at", text::iso_time(kept.created)},
                         {"last_accessed", text::iso_time(kept.last_accessed)},
                         {"message_count", kept.messages},
                         {"expires_at", text::iso_time(kept.expires)}});
  }

  void answer_sessions(exchange& now) {
    json rows = json::array();
    for (const auto& kept : services_.sessions.list(now.client_id)) {
      rows.push_back(render_session(kept));
    }
    const auto total = rows.size();
    now.response.set_content(dump(json::object({{"sessions", rows}, {"total", total}})), json_type);
  }

  /// Expired sessions are gone before they are counted.
  void answer_session_stats(exchange& now) {
    const auto all = services_.sessions.list(now.client_id);
    std::size_t messages = 0;
    for (const auto& kept : all) messages += kept.messages;
    const std::chrono::duration<double, std::ratio<3600>> ttl = services_.settings.session_ttl;
    const json stats = json::object({{"active_sessions", all.size()},
                                     {"expired_sessions", 0},
                                     {"total_messages", messages}});
    now.response.set_content(dump(json::object({{"session_stats", stats},
                                                {"cleanup_interval_minutes", 0},
                                                {"default_ttl_hours", ttl.count()}})),
                             json_type);
  }

  static api_error no_session() { return {error_kind::not_found, "Session not found"}; }

  void answer_session(exchange& now) {
    const auto kept = services_.sessions.get(now.client_id, last_of_path(now));
    if (!kept) throw no_session();
    now.response.set_content(dump(render_session(*kept)), json_type);
  }

  void delete_session(exchange& now) {
    const auto id = last_of_path(now);
    if (!services_.sessions.remove(now.client_id, id)) throw no_session();
    const auto told = "Session " + id + " deleted successfully";
    now.response.set_content(dump(json::object({{"message", told}})), json_type);
  }

  void answer_auth_status(exchange& now) {
    const auto& settings = services_.settings;
    const auto facts = services_.status.get();
    auto errors = missing_credentials(settings);
    if (!facts.problem.empty()) errors.push_back(facts.problem);
    json names = json::array();
    for (const auto& [name, value] : child_environment(settings)) {
      static_cast<void>(value);
      names.push_back(name);
    }
    const auto method = name_of(resolve_auth(settings));
    const json status = json::object(
        {{"method", method},
         {"valid", errors.empty() && facts.logged_in.value_or(true)},
         {"errors", errors},
         {"config", json::object({{"claude_path", settings.claude_path},
                                  {"claude_version", facts.version}})}});
    const json auth = json::object(
        {{"method", method}, {"status", status}, {"environment_variables", names}});
    const bool keyed = !settings.api_keys.empty();
    const json server = json::object({{"api_key_required", keyed},
                                      {"api_key_source", keyed ? "environment" : "none"},
                                      {"version", CLAUDE_OPENAI_VERSION}});
    now.response.set_content(
        dump(json::object({{"claude_code_auth", auth}, {"server_info", server}})), json_type);
  }

  /// Healthy means that a request would be answered.
  void answer_health(exchange& now) {
    const auto counts = services_.processes.counts();
    auto problem = services_.status.get().problem;
    if (problem.empty() && counts.stalled > longest_stall) {
      problem = std::to_string(counts.queued) + " requests wait, and none has got a process for " +
                std::to_string(counts.stalled.count() / 1000) + " s";
    }
    json whole = json::object({{"status", problem.empty() ? "healthy" : "degraded"},
                               {"service", "claude-openai"},
                               {"processes", json::object({{"spare", counts.spare},
                                                           {"warm", counts.warm},
                                                           {"busy", counts.busy},
                                                           {"idle", counts.idle},
                                                           {"stopping", counts.stopping},
                                                           {"maximum", counts.maximum}})},
                               {"queued", counts.queued}});
    if (!problem.empty()) whole["problem"] = problem;
    now.response.set_content(dump(whole), json_type);
  }

  void answer_version(exchange& now) {
    const json whole = json::object({{"version", CLAUDE_OPENAI_VERSION},
                                     {"service", "claude-openai"},
                                     {"api_version", "v1"}});
    now.response.set_content(dump(whole), json_type);
  }

  services services_;
};

//================================================================================================
// [21] server - the whole proxy as one object
// uses: text, log, options, cli_command, process, pool, sessions, engine, status,
//       http | owns threads
//================================================================================================

/// The proxy. Construct, `bind`, `run`; `stop` from another thread or a signal handler.
class server {
 public:
  /// Throws `std::invalid_argument` for options that cannot be run with, and `std::system_error`
  /// when the working directory cannot be made.
  explicit server(options settings)
      : settings_(prepare(std::move(settings), scratch_)),
        guard_(std::make_shared<child_guard>()),
        pool_(settings_, guard_),
        sessions_(settings_),
        engine_(settings_, pool_, sessions_),
        http_({settings_, pool_, engine_, sessions_, status_, closing_}) {}
  server(const server&) = delete;
  server& operator=(const server&) = delete;
  ~server() = default;

  /// Opens the port: the first free one of eleven when none was asked for. Throws
  /// `std::system_error`.
  void bind() {
    const int tries = settings_.port_required || settings_.port == 0 ? 1 : 11;
    for (int i = 0; i < tries; ++i) {
      try {
        listeners_ = listen_on(settings_.host, settings_.port + i);
        return;
      } catch (const std::system_error& failure) {
        const bool busy = failure.code().value() == EADDRINUSE;
        if (!busy || i + 1 == tries || settings_.port + i == 65535) throw;
      }
    }
  }

  /// The port that `bind` opened.
  int port() const { return port_of(listeners_.at(0)); }

  /// `http://127.0.0.1:8000`
  std::string url() const {
    const bool any = settings_.host == "0.0.0.0" || settings_.host == "::";
    const auto host = any ? std::string("localhost") : settings_.host;
    const bool v6 = host.find(':') != std::string::npos;
    return "http://" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port());
  }

  const options& settings() const { return settings_; }
  cli_facts facts() const { return status_.get(); }

  /// Called in a thread of `run` when `claude` was looked at, and when its problem has changed.
  std::function<void(const cli_facts&)> on_inspected;

  /// Serves until `stop`. Requests that run then are finished, for up to the drain timeout; a
  /// second `stop` ends them at once.
  void run() {
    pool_.start();
    std::thread inspector([this] { inspect(); });
    const auto stops = accept_connections();
    listeners_.clear();
    closing_.raise();
    drain(stops > 1);
    inspector.join();
  }

  /// Ends `run`. Safe in a signal handler.
  void stop() noexcept { stop_.raise(); }

 private:
  /// Fills in what is derived from the options and the machine.
  static options prepare(options settings, std::optional<temporary_directory>& scratch) {
    const auto problems = validate(settings);
    if (!problems.empty()) throw std::invalid_argument(text::join(problems, "; "));
    auto& variables = settings.environment;
    const auto name = settings.claude_path.empty() ? "claude" : settings.claude_path;
    const auto path = find_program(name, variables);
    settings.claude_path = path.empty() ? name : path;
    scratch.emplace(value_or(variables, "TMPDIR", "/tmp"));
    if (settings.working_directory.empty()) settings.working_directory = scratch->path();
    variables["TMPDIR"] = scratch->path();  // sockets and files of `claude` go with us
    if (settings.api_keys.empty() && !is_loopback_name(settings.host)) {
      settings.api_keys.push_back(text::random_id("sk-local-", 43));
    }
    return settings;
  }

  /// Looks at the CLI in the background, the port is open long before, and again as long as there
  /// is a problem: the user may install it or log in meanwhile.
  void inspect() {
    constexpr std::chrono::seconds pause{30};
    for (bool news = true;;) {
      const auto facts = inspect_once();
      news = news || facts.problem != status_.get().problem;
      status_.set(facts);
      if (on_inspected && news) on_inspected(facts);
      news = false;
      if (facts.problem.empty() || facts.too_old) return;
      pollfd entry{closing_.fd(), POLLIN, 0};
      if (::poll(&entry, 1, static_cast<int>(pause.count()) * 1000) > 0) return;
    }
  }

  cli_facts inspect_once() {
    cli_facts facts;
    try {
      inspect_version(settings_, *guard_, closing_, facts);
      if (!facts.problem.empty()) return facts;
      pool_.keep_spares();
      inspect_account(settings_, pool_, closing_, facts);
    } catch (const api_error& failure) {  // busy processes are no problem of the CLI's
      if (failure.kind != error_kind::rate_limited) facts.problem = failure.message;
    } catch (const std::exception& failure) {
      facts.problem = failure.what();
    }
    return facts;
  }

  /// Returns how often `stop` was called.
  std::size_t accept_connections() {
    std::vector<pollfd> entries{{stop_.fd(), POLLIN, 0}};
    for (const auto& listener : listeners_) entries.push_back({listener.get(), POLLIN, 0});
    for (;;) {
      ::poll(entries.data(), static_cast<nfds_t>(entries.size()), -1);
      if (const auto stops = entries[0].revents != 0 ? stop_.clear() : 0) return stops;
      for (std::size_t i = 1; i < entries.size(); ++i) {
        if (entries[i].revents != 0) accept_one(entries[i].fd);
      }
    }
  }

  void accept_one(int listener) {
    unique_fd socket(::accept(listener, nullptr, nullptr));
    if (!socket) {
      // Out of descriptors or memory: the connection stays in the queue, and is tried again.
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      return;
    }
    ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
    auto client = std::make_unique<connection>(std::move(socket));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (static_cast<int>(clients_.size()) >= settings_.max_connections) return;
    const int fd = client->fd();
    clients_.push_back(fd);
    try {
      std::thread([this, fd, owned = std::move(client)]() mutable {
        try {
          http_.serve_connection(*owned);
        } catch (const std::exception& fault) {  // one connection's trouble is not the others'
          settings_.log.error(std::string("a connection ended: ") + fault.what());
        }
        const std::lock_guard<std::mutex> inner(mutex_);
        clients_.erase(std::find(clients_.begin(), clients_.end(), fd));
        owned.reset();  // under the lock: until then `drain` may still name the descriptor
        if (clients_.empty()) all_gone_.raise();
      }).detach();
    } catch (const std::system_error& failure) {
      clients_.pop_back();
      settings_.log.error(std::string("no thread for a connection: ") + failure.what());
    }
  }

  bool has_clients() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return !clients_.empty();
  }

  /// Waits for the connections' threads. At the timeout, or at a second `stop`, their sockets are
  /// shut, which ends every turn as if the client had left.
  void drain(bool cut) {
    const auto deadline = std::chrono::steady_clock::now() + settings_.drain_timeout;
    while (has_clients()) {
      if (cut) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const int fd : clients_) ::shutdown(fd, SHUT_RDWR);
      }
      std::array<pollfd, 2> fds{{{stop_.fd(), POLLIN, 0}, {all_gone_.fd(), POLLIN, 0}}};
      ::poll(fds.data(), fds.size(), cut ? 100 : poll_timeout(deadline));
      all_gone_.clear();
      cut = cut || stop_.clear() > 0 || std::chrono::steady_clock::now() >= deadline;
    }
  }

  std::optional<temporary_directory> scratch_;
  options settings_;
  std::shared_ptr<const child_guard> guard_;
  wake_signal stop_;     ///< somebody wants `run` to end
  wake_signal closing_;  ///< raised once, for the connections
  wake_signal all_gone_;
  status_board status_;
  pool pool_;
  session_store sessions_;
  engine engine_;
  http_service http_;
  std::vector<unique_fd> listeners_;
  std::mutex mutex_;
  std::vector<int> clients_;  ///< sockets of the connections that are served
};

}  // namespace claude_openai

#endif  // CLAUDE_OPENAI_HPP
