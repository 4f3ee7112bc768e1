// claude-openai: makes the `claude` CLI answer OpenAI and Anthropic clients, over processes that
// stay alive. One header, C++17. It needs cpp-httplib and nlohmann/json; `main.cpp` is the program.
//
//   claude_openai::options settings;
//   claude_openai::server proxy(settings);
//   proxy.start();
//   std::cout << proxy.url() << std::endl;
//   proxy.wait();  // until `stop`, from another thread or a signal handler
//
// For a program that embeds it, only this is public: `options` with what it holds, `validate`,
// `current_environment`, `logger`, `use_demo`, `server` with `cli_facts` and `request_figures`,
// `api_error`, and CLAUDE_OPENAI_VERSION. All else may change with every version. A wrong call
// throws `std::logic_error`, as `std::invalid_argument` is one for wrong options; what the machine
// refuses throws `std::runtime_error`, as `std::system_error` is one.
//
// Table of contents. A section uses only sections above it; the compiler proves the order.
//
//   values       [01] text               [02] errors              [03] json_access
//                [04] log                [05] options             [06] conversation
//                [07] fields             [08] events
//   dialects     [09] sse                [10] openai_chat         [11] anthropic_messages
//                [12] openai_responses   [13] openai_completions  [14] catalog
//                [15] ollama
//   the CLI      [16] cli_protocol       [17] cli_command
//   processes    [18] process            [19] claude_process      [20] pool
//   state        [21] store              [22] sessions            [23] responses
//                [24] engine             [25] agents              [26] demo
//   edge         [27] guard              [28] limits              [29] metrics
//                [30] status             [31] http_head           [32] transport
//                [33] page               [34] connection          [35] routes
//                [36] http               [37] server              [38] doctor
//
// The way a request goes:
//
//   bytes -> http_head -> httplib -> guard, limiter -> route
//   body -> parse_body -> reader -> a dialect's parse -> turn_request
//   turn_request -> complete_request (what the model and the operator allow)
//                -> engine: session, pool ticket -> lease -> claude_process -> child stdin
//   child stdout -> line_splitter -> turn_decoder -> event -> turn -> answer::next
//     stream:      reply::write(event) -> SSE bytes -> socket
//     not stream:  collector -> turn_result -> reply::render -> body
//
// A tool of the client's is served to the process as an MCP server within this program; the model's
// call of it ends the answer, and stays unanswered until the request that brings its result.
//
// Where is it:
//
//   a field          a dialect's parse -> `turn_request` (conversation) -> `apply_model_limits`
//                    (catalog) -> `encode_body`, `encode_settings` (cli_protocol)
//   an error         `api_error` (errors); the API's: `upstream_error` (cli_protocol); within an
//                    answer `turn_failed` (events) -> `answer_request` (routes) -> `render_error`
//   a time limit     options; the queue's in `pool::ticket`, an answer's in `answer` (engine), an
//                    idle process's in `pool`, a slow reader's in `connection`
//   the client left  `answer::pulled` (engine) -> `abandon`, `open_stream` (routes)
//   who pays         `resolve_auth` (cli_command); how much: `usage_meter` (cli_protocol) ->
//                    `limiter` (limits), `metrics`, `state_store` (store)
//
// Words:
//
//   dialect         one of the APIs that clients speak; parses requests, writes answers
//   event           what happens in an answer, in neutral form: a block starts, a piece of it, its
//                   end, the end of the turn
//   turn            one request to the model and its answer; with tools the answer ends at the call
//   process         a living `claude`; it holds one conversation at a time
//   spare           a process that has started and holds no conversation yet (pre-warmed)
//   cursor, mark    where a process is in its conversation; a mark is where it can go back to
//   replay          to write a history to a process that does not hold it
//   parked          waiting for the results of the client's tools
//   lease, ticket   a process lent to one request; the place of a request in the queue for one
//   janitor         the thread that starts spares, reads idle processes and ends them (LRU, TTL)
//   worn            a process that has served so much that another serves better
//   agent           a request that lends Claude Code's own tools to the model
//   session         a history that the proxy keeps for a client, by an id in a header
//   guard           who may come in; limiter: how often, and how much (rate limits, budgets)
//   half-closed     the client will send no more, and may have left
//   cut             a turn that we end before the CLI would
//   trace           what of a history is compared to find a process that holds it
//
// Threads: one accepts, one per connection serves (it polls the child's pipes and the client's
// socket itself: pull, not push), one inspector looks at the CLI, and the janitor starts spares,
// reads the processes that no request has, and reaps. With Redis, one keeps the connection to it.
#ifndef CLAUDE_OPENAI_HPP
#define CLAUDE_OPENAI_HPP

#define CLAUDE_OPENAI_VERSION "1.0.0"
#define CLAUDE_OPENAI_VERSION_NUMBER 10000  // 10000 * major + 100 * minor + patch

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
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
#include <regex>
#include <set>
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
#include <fnmatch.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <httplib.h>
#include <nlohmann/json.hpp>

#ifdef CLAUDE_OPENAI_SQLITE
#include <sqlite3.h>
#endif

#ifdef CLAUDE_OPENAI_REDIS
#include <hiredis/hiredis.h>
#endif

#ifdef CPPHTTPLIB_OPENSSL_SUPPORT
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#if defined(CLAUDE_OPENAI_REDIS) && __has_include(<hiredis/hiredis_ssl.h>)
#include <hiredis/hiredis_ssl.h>
#define CLAUDE_OPENAI_REDIS_TLS  // hiredis 1.0 or newer, and its hiredis_ssl
#endif
#endif

extern "C" char** environ;  // POSIX lets no header declare it

namespace claude_openai {

//================================================================================================
// [01] text - strings: splitting, UTF-8, identifiers, times
// uses: nothing | pure
//================================================================================================

namespace text {

inline bool starts_with(std::string_view value, std::string_view prefix) {
  return value.substr(0, prefix.size()) == prefix;
}

inline bool ends_with(std::string_view value, std::string_view suffix) {
  return value.size() >= suffix.size() && value.substr(value.size() - suffix.size()) == suffix;
}

/// The value without leading and trailing spaces, tabs and line ends.
inline std::string_view trim(std::string_view value) {
  constexpr std::string_view blanks = " \t\r\n";
  const auto first = value.find_first_not_of(blanks);
  if (first == std::string_view::npos) return {};
  return value.substr(first, value.find_last_not_of(blanks) - first + 1);
}

inline bool is_control(char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }

/// A letter or digit of ASCII, or one of `marks`.
inline bool is_alphanumeric(char c, std::string_view marks = {}) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || marks.find(c) != marks.npos;
}

/// True when every character is; also for an empty value.
inline bool is_alphanumeric(std::string_view value, std::string_view marks) {
  return std::all_of(value.begin(), value.end(), [&](char c) { return is_alphanumeric(c, marks); });
}

inline std::size_t count_characters(std::string_view utf8) {
  const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; };
  return static_cast<std::size_t>(std::count_if(utf8.begin(), utf8.end(), begins));
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

/// A part of a URL without its `%XX`. What is no such code stays as it is.
inline std::string decode_percent(std::string_view value) {
  std::string decoded;
  for (std::size_t at = 0; at < value.size(); ++at) {
    const auto* end = value.data() + std::min(at + 3, value.size());
    unsigned code = 0;
    const bool coded = value[at] == '%' && at + 2 < value.size() &&
                       std::from_chars(value.data() + at + 1, end, code, 16).ptr == end;
    decoded += coded ? static_cast<char>(code) : value[at];
    if (coded) at += 2;
  }
  return decoded;
}

/// The number when the whole value is one, in the type's range.
template <class Number>
std::optional<Number> try_number(std::string_view value) {
  static_assert(std::is_integral<Number>::value, "integers only");
  Number number = 0;
  const auto* end = value.data() + value.size();
  const auto [last, failure] = std::from_chars(value.data(), end, number);
  if (value.empty() || last != end || failure != std::errc()) return std::nullopt;
  return number;
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

/// True for white space alone, as Unicode has it.
inline bool is_blank(std::string_view value) {
  constexpr std::string_view spaces =
      " \t\n\v\f\r\x1C\x1D\x1E\x1F\xC2\x85\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
      "\u2007\u2008\u2009\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF";
  while (!value.empty()) {
    const auto one = value.substr(0, std::max<std::size_t>(utf8_sequence_length(value), 1));
    if (spaces.find(one) == spaces.npos) return false;
    value.remove_prefix(one.size());
  }
  return true;
}

/// True for standard base64 of at least one byte (RFC 4648), with or without its padding.
inline bool is_base64(std::string_view value) {
  const auto data = value.substr(0, value.find_last_not_of('=') + 1);
  return !data.empty() && value.size() - data.size() <= 2 && data.size() % 4 != 1 &&
         is_alphanumeric(data, "+/");
}

/// Standard base64 with padding (RFC 4648).
inline std::string to_base64(std::string_view bytes) {
  constexpr std::string_view alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string encoded;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const auto three = bytes.substr(i, 3);
    unsigned bits = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      bits = bits << 8U | (k < three.size() ? static_cast<unsigned char>(three[k]) : 0U);
    }
    for (std::size_t k = 0; k < 4; ++k) {
      encoded += k <= three.size() ? alphabet[bits >> (18U - 6U * k) & 63U] : '=';
    }
  }
  return encoded;
}

/// The bytes of valid base64 (`is_base64`).
inline std::string from_base64(std::string_view encoded) {
  std::string bytes;
  unsigned bits = 0;
  unsigned count = 0;
  for (const char c : encoded) {
    const bool upper = c >= 'A' && c <= 'Z';
    const bool lower = c >= 'a' && c <= 'z';
    const bool digit = c >= '0' && c <= '9';
    if (!upper && !lower && !digit && c != '+' && c != '/') break;
    const int value = upper      ? c - 'A'
                      : lower    ? c - 'a' + 26
                      : digit    ? c - '0' + 52
                      : c == '+' ? 62
                                 : 63;
    bits = bits << 6U | static_cast<unsigned>(value);
    if ((count += 6) < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 255U);
  }
  return bytes;
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

/// A decimal number such as `2.5` that is not negative.
inline std::optional<double> try_decimal(std::string_view value) {
  const auto point = std::min(value.find('.'), value.size());
  auto number = try_number<std::uint32_t>(value.substr(0, point));
  if (!number) return std::nullopt;
  double sum = *number;
  double unit = 1;
  for (const char c : value.substr(std::min(point + 1, value.size()))) {
    if (c < '0' || c > '9') return std::nullopt;
    sum += (unit /= 10) * (c - '0');
  }
  return sum;
}

/// `2026-11-22T18:09:34.356Z`, with up to nine digits behind the point.
inline std::string iso_time(std::chrono::system_clock::time_point time, std::size_t digits = 3) {
  using namespace std::chrono;
  constexpr std::int64_t second = 1'000'000'000;
  const auto ns = duration_cast<nanoseconds>(time.time_since_epoch()).count();
  const auto seconds_since_epoch = static_cast<std::time_t>(ns / second);
  std::tm parts{};
  gmtime_r(&seconds_since_epoch, &parts);
  std::array<char, 32> date{};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  const auto fraction = std::to_string(second + ns % second).substr(1, digits);
  return std::string(date.data()) + "." + fraction + "Z";
}

/// `2026-11-22` where this program is.
inline std::string local_day() {
  const auto now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  std::array<char, 16> day{};
  std::strftime(day.data(), day.size(), "%Y-%m-%d", &parts);
  return day.data();
}

}  // namespace text

//================================================================================================
// [02] errors - what can go wrong, and the HTTP status that tells it
// uses: nothing | pure
//================================================================================================

/// Every kind of failure that a client can get.
enum class error_kind {
  invalid_request,     ///< 400: a field is wrong
  authentication,      ///< 401: the client's key, or the account's credentials at the API
  billing,             ///< 402: the API's account has to be paid first
  permission,          ///< 403
  not_found,           ///< 404
  method_not_allowed,  ///< 405
  too_large,           ///< 413
  unsupported_coding,  ///< 415: a compressed body that cannot be decoded here
  rate_limited,        ///< 429: by the API, or no process is free
  too_many_requests,   ///< 429: more than the operator lets one client ask
  internal,            ///< 500: a fault of ours
  upstream_failed,     ///< 500: the API failed
  bad_gateway,         ///< 502: `claude` crashed or wrote an unknown message
  unavailable,         ///< 503: no `claude`, no login, no free process
  overloaded,          ///< 503: the API is overloaded (its own 529 is unknown to OpenAI clients)
  timed_out,           ///< 504
};

/// What the log, HTTP and the two APIs call a kind of failure.
struct error_names {
  std::string_view log;
  int status;
  const char* openai_type;
  const char* openai_code;  ///< empty: null, unless the error has a code of its own
  const char* anthropic_type;
};

inline const error_names& names_of(error_kind kind) {
  static constexpr std::array<error_names, 16> names = {{
      // in the order of `error_kind`
      {"invalid_request", 400, "invalid_request_error", "", "invalid_request_error"},
      {"authentication", 401, "authentication_error", "invalid_api_key", "authentication_error"},
      {"billing", 402, "billing_error", "billing_error", "billing_error"},
      {"permission", 403, "permission_error", "", "permission_error"},
      {"not_found", 404, "not_found_error", "not_found", "not_found_error"},
      {"method_not_allowed", 405, "invalid_request_error", "method_not_allowed",
       "invalid_request_error"},
      {"too_large", 413, "invalid_request_error", "request_too_large", "request_too_large"},
      {"unsupported_coding", 415, "invalid_request_error", "unsupported_content_encoding",
       "invalid_request_error"},
      {"rate_limited", 429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error"},
      {"too_many_requests", 429, "rate_limit_exceeded", "too_many_requests", "rate_limit_error"},
      {"internal", 500, "server_error", "internal_error", "api_error"},
      {"upstream_failed", 500, "server_error", "upstream_error", "api_error"},
      {"bad_gateway", 502, "server_error", "bad_gateway", "api_error"},
      {"unavailable", 503, "server_error", "unavailable", "api_error"},
      {"overloaded", 503, "server_error", "overloaded", "overloaded_error"},
      {"timed_out", 504, "server_error", "timeout", "timeout_error"},
  }};
  return names[static_cast<std::size_t>(kind)];
}

inline int http_status(error_kind kind) { return names_of(kind).status; }

/// A failure in dialect-neutral form. Thrown by parsers and guards; carried by `turn_failed` when
/// the backend is the cause.
class api_error : public std::exception {
 public:
  api_error(error_kind what_kind, std::string text, std::string word = {})
      : kind(what_kind),
        message(std::move(text)),
        code(std::move(word)),
        is_upstream(what_kind == error_kind::bad_gateway) {}

  const char* what() const noexcept override { return message.c_str(); }

  error_kind kind;
  std::string message;
  std::string param;  ///< path of the offending field, such as `messages[0].role`
  std::string code;   ///< machine-readable word, such as `model_not_found`
  std::optional<std::chrono::milliseconds> retry_after;
  bool retry_is_futile = false;  ///< true: the operator must act first, or each try costs an answer
  bool is_upstream;              ///< the API or `claude` failed, not the proxy or its client
};

/// One word for the log: the error's own, else its kind's.
inline std::string word_for(const api_error& error) {
  return error.code.empty() ? std::string(names_of(error.kind).log) : error.code;
}

/// A 400 that names its field.
inline api_error bad_field(std::string path, std::string_view problem) {
  api_error error(error_kind::invalid_request, "'" + path + "' " + std::string(problem));
  error.param = std::move(path);
  return error;
}

//================================================================================================
// [03] json_access - bounded parsing and path-carrying reads of untrusted JSON
// uses: text, errors | pure
//================================================================================================

/// Keeps the order of members: the order of a schema's properties steers what a model writes.
using json = nlohmann::ordered_json;

constexpr std::size_t max_json_depth = 128;
/// Of a line of the CLI, which wraps what the model wrote.
constexpr std::size_t max_line_depth = 2 * max_json_depth;
constexpr std::size_t max_json_values = 300'000;
constexpr std::size_t bytes_of_json_value = 100;  ///< memory that a parsed value takes, roughly
/// Name comparisons that parsing may cost: one object of 6,000 members, or many small ones.
constexpr std::size_t max_json_comparisons = 20'000'000;

/// Throws when the text nests deeper or has larger objects than a parser can take safely:
/// nlohmann's recursion overflows the stack, and ordered objects look names up one by one.
/// Returns the number of values, roughly.
inline std::size_t check_json_bounds(std::string_view body,
                                     std::size_t max_depth = max_json_depth) {
  std::vector<std::size_t> members;  // of each object and array around the current byte
  std::size_t comparisons = 0;
  std::size_t values = 0;
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
    values += c == ',' || c == ':' || c == '[' ? 1 : 0;
    if (values > max_json_values) {
      throw api_error(error_kind::invalid_request, "the JSON holds too many values");
    }
    if (members.size() > max_depth) {
      throw api_error(error_kind::invalid_request, "the JSON is nested too deeply");
    }
    if (comparisons > max_json_comparisons) {
      throw api_error(error_kind::invalid_request, "an object in the JSON has too many fields");
    }
  }
  return values;
}

/// The UTF-16 unit that an escape such as `\u00e9` begins here with; 0 where there is none.
inline unsigned escaped_unit(std::string_view text, std::size_t at) {
  unsigned unit = 0;
  if (text.size() < at + 6 || text[at] != '\\' || text[at + 1] != 'u') return 0;
  const auto* digits = text.data() + at + 2;
  const auto read = std::from_chars(digits, digits + 4, unit, 16);
  return read.ptr == digits + 4 ? unit : 0;
}

/// Puts U+FFFD in place of escapes of half a character, as JavaScript writes an emoji that it has
/// cut: JSON allows them, and our parser does not. True if there are any.
inline bool mend_half_characters(std::string_view text, std::string& mended) {
  const auto is_first = [](unsigned unit) { return unit >= 0xD800 && unit < 0xDC00; };
  const auto is_second = [](unsigned unit) { return unit >= 0xDC00 && unit < 0xE000; };
  std::size_t copied = 0;
  for (auto at = text.find('\\'); at < text.size(); at = text.find('\\', at)) {
    const auto unit = escaped_unit(text, at);
    const bool whole = is_first(unit) && is_second(escaped_unit(text, at + 6));
    if (!whole && (is_first(unit) || is_second(unit))) {
      mended.append(text.substr(copied, at - copied)).append("\\ufffd");
      copied = at + 6;
    }
    at += whole ? 12 : 2;
  }
  if (copied > 0) mended.append(text.substr(copied));
  return copied > 0;
}

/// Any text to JSON; malformed text is a discarded value. Throws as `check_json_bounds`.
inline json parse_json(std::string_view text, std::size_t max_depth = max_json_depth) {
  check_json_bounds(text, max_depth);
  std::string mended;
  return json::parse(mend_half_characters(text, mended) ? mended : text, nullptr, false);
}

/// Text that a model, another program or a file holds, to JSON. Never throws: what is malformed or
/// exceeds the bounds is a discarded value.
inline json try_parse_json(std::string_view text, std::size_t max_depth = max_json_depth) {
  try {
    return parse_json(text, max_depth);
  } catch (const api_error&) {
    return json(json::value_t::discarded);
  }
}

/// Untrusted text to JSON. Throws a 400 that tells the byte at which the text is broken.
inline json parse_body(std::string_view body) {
  if (text::trim(body).empty()) {
    throw api_error(error_kind::invalid_request, "the request body is empty; send a JSON object");
  }
  check_json_bounds(body);
  std::string mended;
  if (mend_half_characters(body, mended)) body = mended;
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

/// Memory that a value takes, roughly.
inline std::size_t memory_of(const json& value) {
  std::size_t bytes = bytes_of_json_value;
  if (value.is_string()) bytes += value.get_ref<const std::string&>().size();
  if (!value.is_structured()) return bytes;
  for (const auto& one : value) bytes += memory_of(one);
  return bytes;
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
    if (sought_ != nullptr) sought_->insert(name);
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

 protected:
  /// Notes which members are looked for. Borrows the notes.
  reader(const json& value, std::set<std::string>* sought) : value_(&value), sought_(sought) {}

 private:
  static std::string bounds(double low, double high) {
    return dump(json(low)) + " and " + dump(json(high));
  }

  const json* value_;
  std::string path_;
  std::set<std::string>* sought_ = nullptr;
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

/// At most 10^15 either way, so that sums of thousands of them fit.
inline std::int64_t integer_of(const json& object, const char* name) {
  const auto& member = member_of(object, name);
  constexpr double most = 1e15;
  if (!member.is_number()) return 0;
  return static_cast<std::int64_t>(std::clamp(member.get<double>(), -most, most));
}

inline bool boolean_of(const json& object, const char* name) {
  const auto& member = member_of(object, name);
  return member.is_boolean() && member.get<bool>();
}

//================================================================================================
// [04] log - a levelled logger as a value
// uses: text, json_access | thread-safe
//================================================================================================

enum class log_level { debug, info, warning, error, off };

/// `object`: a line is JSON with `time`, `level` and `message`, for programs to read.
enum class log_format { line, object };

constexpr std::array<std::string_view, 5> log_level_names = {"debug", "info", "warning", "error",
                                                             "off"};

/// Length of the credential's mark (`sk-`, `Bearer `, `AKIA`) at the front; 0 when there is none.
inline std::size_t credential_mark_length(std::string_view line) {
  for (const std::string_view mark : {"sk-", "bearer ", "akia"}) {
    if (text::to_lower(line.substr(0, mark.size())) == mark) return mark.size();
  }
  return 0;
}

/// True for JSON's `\n` and the like, and `\u000a`: what follows begins a word.
inline bool ends_in_escape(std::string_view content) {
  constexpr std::size_t longest = 6;
  content.remove_prefix(content.size() - std::min(content.size(), longest));
  const auto backslash = content.find_last_of('\\');
  if (backslash == std::string_view::npos) return false;
  const auto escape = content.substr(backslash + 1);
  return (escape.size() == 1 && escape.find_first_of("nrtbf") == 0) ||
         (escape.size() == 5 && escape[0] == 'u');
}

/// The line with whatever looks like a credential masked.
inline std::string redact(std::string_view line) {
  const auto in_token = [](char c) { return text::is_alphanumeric(c, "-_./+=~"); };
  std::string safe;
  while (!line.empty()) {
    const bool word_begins =
        safe.empty() || !text::is_alphanumeric(safe.back()) || ends_in_escape(safe);
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

/// Of a header, a field of JSON or a parameter of a path: its value may be a credential.
inline bool is_secret_name(std::string_view name) {
  const auto lower = text::to_lower(name);
  const std::array<const char*, 7> marks = {"auth",   "key", "cookie",  "token",
                                            "secret", "jwt", "password"};
  return std::any_of(marks.begin(), marks.end(),
                     [&](const char* mark) { return lower.find(mark) != lower.npos; });
}

/// JSON, whole or not, with the texts of fields masked that are named like secrets; within strings
/// that hold JSON, too: there a quote has backslashes before it.
inline std::string mask_fields(std::string_view body) {
  const auto backslashes_before = [&](std::size_t at) {
    std::size_t count = 0;
    while (count < at && body[at - count - 1] == '\\') ++count;
    return count;
  };
  std::string safe;
  std::size_t shown = 0;  // what is in there
  std::size_t begin = 0;  // of what may be a name
  for (auto quote = body.find('"'); quote < body.size(); quote = body.find('"', quote + 1)) {
    const auto depth = backslashes_before(quote);
    const auto name = body.substr(begin, quote - depth - begin);
    begin = quote + 1;
    const auto colon = body.find_first_not_of(" \t\r\n", begin);
    const auto value = body.find('"', std::min(colon, body.size()));
    if (value > body.size() || body[colon] != ':') continue;
    const auto between = text::trim(body.substr(colon + 1, value - colon - 1));
    if (between != std::string(depth, '\\') || !is_secret_name(name)) continue;
    quote = value;
    do {
      quote = std::min(body.find('"', quote + 1), body.size());
    } while (quote < body.size() && backslashes_before(quote) % (2 * depth + 2) != depth);
    safe.append(body.substr(shown, value + 1 - shown)).append("***");
    shown = quote < body.size() ? quote - depth : quote;
    begin = quote + 1;
  }
  return safe.append(body.substr(shown));
}

/// A path with the parameters of its query masked that are named like secrets.
inline std::string mask_query(std::string path) {
  for (auto at = path.find('?'); at < path.size(); at = path.find('&', at + 1)) {
    const auto equals = path.find('=', at);
    const auto end = std::min(path.find('&', at + 1), path.size());
    if (equals > end || !is_secret_name(path.substr(at + 1, equals - at - 1))) continue;
    path.replace(equals + 1, end - equals - 1, "***");
  }
  return path;
}

/// A line of the log for programs to read; `fields` are added, and win.
inline std::string render_log_object(log_level level, const std::string& message,
                                     const json& fields = json::object()) {
  json whole = json::object({{"time", text::iso_time(std::chrono::system_clock::now())},
                             {"level", log_level_names.at(static_cast<std::size_t>(level))},
                             {"message", message}});
  whole.update(fields);
  return dump(whole);
}

/// The same for people.
inline std::string render_log_text(log_level level, const std::string& message) {
  return text::iso_time(std::chrono::system_clock::now()) + " " +
         std::string(log_level_names.at(static_cast<std::size_t>(level))) + " " + message;
}

/// Writes lines to one sink. Copies share the sink; every call is safe from any thread.
class logger {
 public:
  using sink = std::function<void(log_level, const std::string& line)>;

  /// A logger without a sink says nothing. The sink gets a message, or a whole JSON object; what it
  /// throws is lost, since there is nowhere to tell it.
  logger() : logger(log_level::off, nullptr) {}
  logger(log_level least, sink write, log_format format = log_format::line)
      : state_(std::make_shared<state>(least, std::move(write), format)) {}

  bool wants(log_level level) const {
    return state_->write != nullptr && level >= state_->least && level != log_level::off;
  }

  /// From now on, for all copies.
  void set_level(log_level least) const { state_->least = least; }

  void debug(const std::string& line) const { write(log_level::debug, line); }
  void info(const std::string& line) const { write(log_level::info, line); }
  void warning(const std::string& line) const { write(log_level::warning, line); }
  void error(const std::string& line) const { write(log_level::error, line); }

  /// `fields` are the members that the JSON format has beside the message, which tells them too.
  void write(log_level level, const std::string& line, const json& fields = json::object()) const {
    if (!wants(level)) return;
    const bool as_object = state_->format == log_format::object;
    const auto text_line = redact(as_object ? render_log_object(level, line, fields) : line);
    const std::lock_guard<std::mutex> lock(state_->mutex);
    try {
      state_->write(level, text_line);
    } catch (...) {
    }
  }

 private:
  struct state {
    state(log_level at_least, sink to, log_format as)
        : least(at_least), write(std::move(to)), format(as) {}
    std::atomic<log_level> least;
    sink write;
    log_format format;
    std::mutex mutex;
  };

  std::shared_ptr<state> state_;
};

/// Calls what the embedding program gave, if anything. What that throws is logged.
template <class Callback, class... Given>
void call_back(const logger& log, const Callback& callback, const Given&... given) {
  try {
    if (callback) callback(given...);
  } catch (const std::exception& failure) {
    log.error(std::string("a callback of the embedding program failed: ") + failure.what());
  } catch (...) {
    log.error("a callback of the embedding program failed");
  }
}

//================================================================================================
// [05] options - what the operator decides
// uses: text, json_access, log | pure, but for live_options: thread-safe
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

using environment_map = std::map<std::string, std::string>;

/// The environment of this process.
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

/// `automatic`: files are confined, and commands where the system can do it. `on`: both, or there
/// are no agents. `off`: neither.
enum class sandbox_use { automatic, on, off };

/// From the most careful to the least; a client gets no further than the operator lets it.
constexpr std::array<std::string_view, 5> permission_modes = {"plan", "dontAsk", "default",
                                                              "acceptEdits", "bypassPermissions"};

inline std::optional<std::size_t> rank_of_mode(std::string_view mode) {
  const auto found = std::find(permission_modes.begin(), permission_modes.end(), mode);
  if (found == permission_modes.end()) return std::nullopt;
  return static_cast<std::size_t>(found - permission_modes.begin());
}

/// How often one address and one client key may ask, in requests a minute, per group of endpoints.
/// 0: never.
struct rate_limits {
  std::optional<bool> enabled;  ///< unset: where others than this machine's users can connect
  int chat = 10;                ///< whatever asks the model
  int debug = 2;
  int auth = 10;
  int session = 15;
  int health = 30;
  int other = 30;
};

/// What one client key may use in a span of time; 0: as much as it likes.
struct budget {
  std::int64_t requests = 0;
  std::int64_t tokens = 0;  ///< input and output together
  double usd = 0;

  /// Takes away with -1.
  void add(const budget& more, int sign = 1) {
    requests += sign * more.requests;
    tokens += sign * more.tokens;
    usd += sign * more.usd;
  }
};

/// A model under a client's name for it, a pattern of the shell's: `gpt-*`.
struct model_alias {
  std::string pattern;
  std::string model;
};

/// Everything that can be set; plain data. `validate` tells what is wrong with it.
struct options {
  std::string host = "127.0.0.1";
  int port = 8000;             ///< 0: any free port
  bool port_required = false;  ///< false: a busy port gives way to one of the next ten
  auth_method auth = auth_method::detect;
  std::string claude_path;        ///< empty: `claude` on the environment's PATH
  std::string working_directory;  ///< empty: a private temporary one, removed at the end
  std::vector<std::string> claude_arguments;  ///< before all others, as `claude_path` needs them
  bool demo = false;  ///< `claude_path` is a stand-in for `claude`; shown where answers are
  std::string default_model = "sonnet";  ///< an alias never goes stale
  std::vector<model_alias> aliases;      ///< the first whose pattern fits the name counts
  std::vector<std::string> api_keys;     ///< empty: open, on loopback only
  bool made_key = false;  ///< the last of `api_keys` was made for this run, not given
  std::vector<std::string> cors_origins;  ///< of pages that may ask, beside loopback's; `*`: of all
  std::vector<std::string> trusted_proxies;  ///< addresses or networks whose X-Forwarded-For counts
  rate_limits limits;
  budget minute_budget;         ///< of each key
  budget day_budget;            ///< of each key, by days of UTC
  std::string unix_socket;      ///< path of a socket to listen on beside the port; empty: none
  bool tcp = true;              ///< false: the unix socket alone
  bool ollama = false;          ///< listen at 127.0.0.1:11434 too, where Ollama's clients look
  std::string tls_certificate;  ///< PEM file, with its chain; empty: no TLS
  std::string tls_key;          ///< PEM file
  bool strict = false;          ///< what a request asks for in vain is a 400 instead of a header
  bool extra_usage = true;      ///< false: no answer that is billed beyond a subscription's plan
  std::optional<auth_method> fallback;  ///< answers while the plan of the login is used up
  std::string fallback_model;           ///< of such answers; empty: the request's
  double plan_price = 0;                ///< of the login's plan, in USD a month; 0: not told
  bool web = false;           ///< the API may search the web for clients, and bill each search
  bool builtin_tools = true;  ///< clients may ask for Claude Code's own tools (`enable_tools`)
  sandbox_use sandbox = sandbox_use::automatic;  ///< of agents; see `confinement`
  bool sandbox_network = false;                  ///< commands in the sandbox may reach the network
  bool allow_keyless_tools = false;  ///< also to clients without a key whose user is not known
  std::vector<std::string> allowed_tools;      ///< most that an agent may have; empty: all known
  std::vector<std::string> disallowed_tools;   ///< rules that no agent gets around
  std::string permission_mode = "default";     ///< most that a client may ask for
  int max_turns = 0;                           ///< most that a client may ask for; 0: no limit
  double max_budget_usd = 0;                   ///< of one agent's process; 0: no limit
  std::vector<std::string> agent_directories;  ///< that agents may use beside their own
  std::vector<std::string> agent_roots;        ///< where a client may let its agent work, and below
  std::string mcp_config;  ///< file with the MCP servers of agents, in Claude Code's own form
  bool allow_mcp_registration = false;      ///< clients may add MCP servers, which are commands
  std::vector<std::string> secret_paths;    ///< files and directories that no agent's tool may name
  std::vector<std::string> secret_folders;  ///< those above them at the start, outer ones first
  int spares = 2;                           ///< processes kept ready
  int max_processes = 0;                    ///< 0: from the machine's memory
  bool reuse_processes = true;              ///< false: a process serves one conversation
  int max_queue = 64;                       ///< requests that may wait for a process
  std::size_t max_body_bytes = 10 * 1024 * 1024;
  int max_connections = 1024;
  std::chrono::milliseconds timeout{600'000};        ///< of one request, from start to end
  std::chrono::milliseconds queue_timeout{60'000};   ///< longest wait for a process
  std::chrono::milliseconds idle_timeout{600'000};   ///< of a conversation's process; 0: none stays
  std::chrono::milliseconds session_ttl{3'600'000};  ///< of a session nobody uses
  std::string store;              ///< file of state that survives a restart; empty: memory alone
  std::string session_directory;  ///< the same, as `claude-openai.sqlite` in this directory
  std::chrono::milliseconds keep_alive_interval{15'000};  ///< of silence in a stream
  std::chrono::milliseconds stop_grace{500};     ///< between SIGTERM and SIGKILL of a `claude`
  std::chrono::milliseconds spare_hold{20'000};  ///< unasked, a model keeps a spare of few so long
  std::chrono::milliseconds drain_timeout{30'000};      ///< for running requests, after `stop`
  environment_map environment = current_environment();  ///< see `child_environment`
  bool log_bodies = false;  ///< requests and answers too, at the level `debug`
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

constexpr std::size_t min_key_length = 16;  ///< of a client key beyond loopback

/// Nobody but this machine's users can connect.
inline bool is_private(const options& settings) {
  return !settings.tcp || is_loopback_name(settings.host);
}

/// A permission rule as the CLI splits and reads it: `Bash` or `Bash(git:*)`. The CLI splits at
/// commas and blanks outside parentheses, and its parentheses do not nest (tried on 2.1.120 to
/// 2.1.332), so that a rule holds one pair of them, which ends it. One behind a backslash is text.
inline bool is_rule(std::string_view rule) {
  const auto open = std::min(rule.find('('), rule.size());
  const auto name = rule.substr(0, open);
  const auto inner = rule.substr(open);
  if (name.empty() || name.front() == '-' || !text::is_alphanumeric(name, "_-*")) return false;
  return inner.empty() || (inner.size() > 2 && inner.find_last_of('(') == 0 &&
                           inner.find(')') == inner.size() - 1 && inner[inner.size() - 2] != '\\' &&
                           std::none_of(inner.begin(), inner.end(), text::is_control));
}

template <class Require>
void require_access(const options& settings, Require require) {
  for (const auto& origin : settings.cors_origins) {
    require(origin == "*" || origin.find("://") != std::string::npos,
            "--cors-origin: it is a scheme and a host, such as https://app.example.com, or *");
    require(origin != "*" || !settings.api_keys.empty(),
            "--cors-origin '*' lets every web page in; it needs a client key (--api-key)");
  }
  require(settings.store.empty() || settings.session_directory.empty(),
          "--session-dir is a --store in that directory; name one of them");
  for (const auto* rules : {&settings.allowed_tools, &settings.disallowed_tools}) {
    require(std::all_of(rules->begin(), rules->end(), is_rule),
            "a tool is a name or a rule, such as Bash or Bash(git:*), with no other parentheses");
  }
  for (const auto& key : settings.api_keys) {
    require(!key.empty() && text::trim(key).size() == key.size(),
            "an API key must not be empty nor begin or end with a blank");
    require(key.size() >= min_key_length || is_private(settings),
            "an API key must have at least 16 characters beyond loopback, where it can be guessed");
  }
}

template <class Require>
void require_amounts(const options& settings, Require require) {
  const auto& limits = settings.limits;
  for (const int limit :
       {limits.chat, limits.debug, limits.auth, limits.session, limits.health, limits.other}) {
    require(limit >= 0, "a rate limit must not be negative");
  }
  for (const auto* amounts : {&settings.minute_budget, &settings.day_budget}) {
    require(amounts->requests >= 0 && amounts->tokens >= 0 && amounts->usd >= 0,
            "a budget must not be negative");
  }
  for (const auto time :
       {settings.queue_timeout, settings.idle_timeout, settings.session_ttl, settings.stop_grace,
        settings.keep_alive_interval, settings.spare_hold, settings.drain_timeout}) {
    require(time.count() >= 0, "a time must not be negative");
  }
  require(settings.max_queue >= 0, "max-queue must not be negative");
  require(settings.plan_price >= 0, "plan-price must not be negative");
}

/// One sentence per problem; empty when the options can be run with.
inline std::vector<std::string> validate(const options& settings) {
  std::vector<std::string> problems;
  const auto require = [&](bool holds, const char* problem) {
    if (!holds) problems.emplace_back(problem);
  };
  require(settings.port >= 0 && settings.port <= 65535, "the port must be between 0 and 65535");
  require(!settings.host.empty(), "the host must not be empty");
  require(settings.timeout.count() > 0, "--timeout must be longer than nothing");
  require(settings.spares >= 0 && settings.spares <= 64, "spares must be between 0 and 64");
  require(settings.max_processes >= 0 && settings.max_processes <= 1024,
          "max-processes must be between 1 and 1024, or 0 for as many as the memory allows");
  require(settings.max_body_bytes > 0, "--max-request-size must be more than nothing");
  require(settings.max_connections > 0, "max-connections must be more than nothing");
  require(settings.max_turns >= 0, "max-turns must not be negative");
  require(settings.max_budget_usd >= 0, "max-budget-usd must not be negative");
  require(settings.tcp || !settings.unix_socket.empty(), "without TCP a unix socket is needed");
  require(settings.tcp || !settings.ollama, "--ollama listens by TCP, which --no-tcp turns off");
  require(settings.tls_certificate.empty() == settings.tls_key.empty(),
          "TLS needs both a certificate and its key");
  for (const auto& network : settings.trusted_proxies) {
    const auto base = network.substr(0, network.find('/'));
    require(is_ip_literal(base) || base == "unix",
            "--trusted-proxy: it is an address or a network, such as 10.0.0.0/8");
  }
  require(rank_of_mode(settings.permission_mode).has_value(),
          "the permission mode must be plan, dontAsk, default, acceptEdits or bypassPermissions");
  require(!settings.demo || !settings.claude_arguments.empty(), "the demo is set up by `use_demo`");
  require(!settings.default_model.empty(), "the model must not be empty");
  require(!text::starts_with(settings.default_model, "-"), "--model must not begin with '-'");
  require(!text::starts_with(settings.fallback_model, "-"),
          "--fallback-model must not begin with '-'");
  for (const auto& alias : settings.aliases) {
    require(!alias.pattern.empty() && !alias.model.empty() && alias.model.front() != '-',
            "--alias: an alias is a name or pattern and a model, such as gpt-*=sonnet");
  }
  require_amounts(settings, require);
  require_access(settings, require);
  return problems;
}

/// The same, by the account that answers while the plan is used up.
inline options with_fallback(options settings) {
  settings.auth = settings.fallback.value();
  return settings;
}

/// A client key of this run's own, beside those that are given.
inline void make_key(options& settings) {
  settings.api_keys.push_back(text::random_id("sk-local-", 43));
  settings.made_key = true;
}

/// The options of a running proxy. What may change while it runs is taken from a new set; requests
/// that are under way keep the set that they began with.
class live_options {
 public:
  explicit live_options(options settings)
      : now_(std::make_shared<const options>(std::move(settings))) {}

  std::shared_ptr<const options> get() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return now_;
  }

  /// Takes over keys, limits, budgets, extra usage, origins, trusted proxies, the default model and
  /// aliases.
  void take(const options& fresh) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto next = *now_;
    next.api_keys = fresh.api_keys;
    next.made_key = fresh.made_key;
    next.default_model = fresh.default_model;
    next.aliases = fresh.aliases;
    next.cors_origins = fresh.cors_origins;
    next.trusted_proxies = fresh.trusted_proxies;
    next.limits = fresh.limits;
    next.minute_budget = fresh.minute_budget;
    next.day_budget = fresh.day_budget;
    next.extra_usage = fresh.extra_usage;
    now_ = std::make_shared<const options>(std::move(next));
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const options> now_;
};

//================================================================================================
// [06] conversation - one request in neutral form, whatever API it came by
// uses: text, errors, json_access | pure
//================================================================================================

template <class... Lambdas>
struct overloaded : Lambdas... {
  using Lambdas::operator()...;
};
template <class... Lambdas>
overloaded(Lambdas...) -> overloaded<Lambdas...>;

enum class role { user, assistant };

struct text_part {
  std::string text;
};

/// An image or a document: its bytes, or a URL from which the API fetches it; or a search result.
struct media_part {
  enum class media_kind { image, document };
  media_kind kind = media_kind::image;
  std::string media_type;  ///< `image/png`; empty with a URL
  std::string data;        ///< base64; empty with a URL
  std::string url;
  std::string title;  ///< a document's file name
  /// Members of the block that go to the API as they are: `context`, `citations`, a source of
  /// pieces; of a search result all.
  json more = json::object();
};

struct tool_call_part {
  std::string id;
  std::string name;
  json input;
};

struct tool_result_part {
  std::string call_id;
  std::vector<std::variant<text_part, media_part>> content;
  bool is_error = false;
};

/// What the model thought, signed by the API, which wants it back unchanged; clients of some APIs
/// bring it. `redacted` is the API's own ciphertext in place of words.
struct thinking_part {
  std::string text;
  std::string signature;
  std::string redacted;
};

/// A block of the model's that goes back to the API as it is: its search of the web, what that has
/// found, or a text that cites it.
struct api_block_part {
  json block;
};

using content_part = std::variant<text_part, media_part, thinking_part, tool_call_part,
                                  tool_result_part, api_block_part>;

struct message {
  role author = role::user;
  std::vector<content_part> parts;
};

/// Decides which process can serve a conversation, and which messages are replayed. Compared
/// whole, never by hash alone, so that no conversation can be taken for another.
struct conversation_trace {
  std::string identity;  ///< the client, and all that a process gets before its first message
  std::string words;     ///< the messages of both sides
  std::vector<std::size_t> ends;      ///< length of `words` after each of them
  std::vector<std::string> thoughts;  ///< of each message, as the API has signed or sealed them
};

/// Length and bytes, so that no content can look like a border.
inline void append_field(std::string& words, char kind, std::string_view bytes) {
  words.append(1, kind).append(std::to_string(bytes.size())).append(1, ':').append(bytes);
}

inline void append_media(std::string& words, const media_part& media) {
  const bool image = media.kind == media_part::media_kind::image;
  append_field(words, image ? 'f' : 'g', media.media_type);
  append_field(words, 'd', media.url.empty() ? media.data : media.url);
  append_field(words, 'h', media.title);
  if (!media.more.empty()) append_field(words, 'b', dump(media.more));
}

/// `call`: which of the calls before it answers.
inline void append_result(std::string& words, const tool_result_part& result, std::size_t call) {
  append_field(words, result.is_error ? 'e' : 'r', std::to_string(call));
  append_field(words, 'z', std::to_string(result.content.size()));
  for (const auto& part : result.content) {
    if (const auto* plain = std::get_if<text_part>(&part)) append_field(words, 't', plain->text);
    if (const auto* media = std::get_if<media_part>(&part)) append_media(words, *media);
  }
}

/// Appends the same bytes for equal values, however a client has written them down: a whole number
/// may have a fraction, and the members of an object another order each time, as in Go's clients.
inline void append_json(std::string& words, const json& value) {
  constexpr auto replace = nlohmann::json::error_handler_t::replace;
  constexpr double exact = 9'007'199'254'740'992.0;  // 2^53
  if (value.is_object()) {
    std::map<std::string_view, const json*> members;
    for (const auto& [name, member] : value.items()) members.emplace(name, &member);
    append_field(words, 'O', std::to_string(members.size()));
    for (const auto& [name, member] : members) {
      append_field(words, 'N', name);
      append_json(words, *member);
    }
  } else if (value.is_array()) {
    append_field(words, 'L', std::to_string(value.size()));
    for (const auto& element : value) append_json(words, element);
  } else {
    const double number = value.is_number_float() ? value.get<double>() : 0.5;
    const bool whole = std::abs(number) < exact && std::trunc(number) == number;
    append_field(words, 'V',
                 whole ? std::to_string(static_cast<std::int64_t>(number))
                       : value.dump(-1, ' ', false, replace));
  }
}

/// The place of a call among those of a message; their number when it is none of them.
inline std::size_t place_of_call(const message& entry, const std::string& id) {
  std::size_t place = 0;
  for (const auto& part : entry.parts) {
    const auto* call = std::get_if<tool_call_part>(&part);
    if (call != nullptr && call->id == id) return place;
    place += call == nullptr ? 0 : 1;
  }
  return place;
}

/// An assistant's texts count as one, without blanks at the ends: clients join and trim them.
/// Thoughts and searches do not count: most clients never see them whole. Nor do the ids of calls,
/// which some clients rename: that of a result stands for a call of the message `before`.
inline void append_message(conversation_trace& trace, const message& entry, const message& before) {
  std::string reply;
  std::string thoughts;
  const auto append = overloaded{
      [&](const text_part& part) {
        if (entry.author == role::user) append_field(trace.words, 'u', part.text);
        if (entry.author == role::assistant) reply += part.text;
      },
      [&](const media_part& part) { append_media(trace.words, part); },
      [&](const thinking_part& part) { thoughts += part.signature + part.redacted; },
      [&](const tool_call_part& part) {
        append_field(trace.words, 'n', part.name);
        append_json(trace.words, part.input);
      },
      [&](const tool_result_part& part) {
        append_result(trace.words, part, place_of_call(before, part.call_id));
      },
      [&](const api_block_part& part) { reply += string_of(part.block, "text"); },
  };
  for (const auto& part : entry.parts) std::visit(append, part);
  if (entry.author == role::assistant) append_field(trace.words, 'a', text::trim(reply));
  trace.ends.push_back(trace.words.size());
  trace.thoughts.push_back(std::move(thoughts));
}

/// How many messages two conversations begin with alike. Most clients do not bring the model's
/// thoughts back; those that `asked` does bring must be the held ones.
inline std::size_t count_common(const conversation_trace& held, const conversation_trace& asked) {
  const auto differ =
      std::mismatch(held.words.begin(), held.words.end(), asked.words.begin(), asked.words.end());
  const auto same = static_cast<std::size_t>(differ.first - held.words.begin());
  std::size_t common = 0;
  while (common < std::min(held.ends.size(), asked.ends.size()) &&
         held.ends[common] == asked.ends[common] && held.ends[common] <= same &&
         (asked.thoughts[common].empty() || asked.thoughts[common] == held.thoughts[common])) {
    ++common;
  }
  return common;
}

/// A tool that the client runs.
struct tool_definition {
  std::string name;
  std::string description;
  json schema;                 ///< JSON Schema of its input, an object
  json more = json::object();  ///< further members that the API knows, as it is to get them
};

/// What the model may do with the client's tools.
struct tool_choice {
  enum class how { automatic, none, any, named };
  how kind = how::automatic;
  std::string name;                  ///< of the tool that must be called, with `named`
  bool parallel = true;              ///< several calls in one message
  std::vector<std::string> allowed;  ///< the only tools that are offered; empty: all
};

/// How the model picks its words; what is not set is the API's to choose.
struct sampling_settings {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<std::int64_t> top_k;
  std::optional<std::int64_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<std::string> cut_at = {};  ///< stop texts that the API does not take
};

/// How much the model thinks before it answers, the field's words for it.
enum class reasoning_effort { none, minimal, low, medium, high, xhigh, max };

constexpr std::array<std::string_view, 7> reasoning_effort_names = {
    "none", "minimal", "low", "medium", "high", "xhigh", "max"};

inline std::string_view name_of(reasoning_effort effort) {
  return reasoning_effort_names.at(static_cast<std::size_t>(effort));
}

/// Thinking tokens for each effort, on models that take a number; the others take the word.
inline std::int64_t thinking_budget(reasoning_effort effort) {
  switch (effort) {
    case reasoning_effort::none: return 0;
    case reasoning_effort::minimal: return 1024;
    case reasoning_effort::low: return 2048;
    case reasoning_effort::medium: return 4096;
    case reasoning_effort::high: return 8192;
    case reasoning_effort::xhigh: return 16384;
    case reasoning_effort::max: return 31999;
  }
  return 0;
}

/// What an agent can reach of this machine. `files`: its file tools reach its directories and no
/// others; `commands`: its commands neither.
enum class confinement { none, files, commands };

/// What Claude Code's own tools may do in this request. All of it is fixed when a process starts.
struct agent_request {
  std::vector<std::string> tools;       ///< that exist for the model and need no permission
  std::vector<std::string> disallowed;  ///< rules such as `Bash(rm:*)`
  std::string permission_mode;
  int max_turns = 0;                ///< 0: without a limit
  std::string directory;            ///< in which it works
  std::vector<std::string> places;  ///< `device:inode` of `directories_of`, in their order
  std::string private_directory;    ///< of its client's agents alone; TMPDIR is in it
  std::string mcp_config;           ///< JSON with the MCP servers it may use; empty: none
  bool client_servers = false;      ///< some of them were registered by the client
  confinement confined = confinement::none;
  bool show_activity = false;  ///< tell the client what the tools were asked and have answered
};

/// What a model's API refuses.
struct model_traits {
  bool always_thinks = false;     ///< thinking cannot be turned off
  bool one_sampling_knob = true;  ///< temperature and top_p only one at a time
  bool never_thinks = false;      ///< the CLI does not ask it to
  int efforts = 3;                ///< none; up to `high`; `max` too; all
};

/// What a client asks for. Messages alternate between user and assistant, and the user speaks
/// first and last: `normalize` sees to it.
struct turn_request {
  std::string client;   ///< who asks: one client's conversations are never another's
  std::string session;  ///< id of the session that holds the history; empty: none
  std::string model;    ///< empty: the operator's default
  std::string system;   ///< empty: none
  std::vector<message> messages;
  std::vector<tool_definition> tools;
  json web = json::array();  ///< the API's own tools that search or read the web, in its words
  tool_choice choice;        ///< of the tools
  std::string
      nudge;  ///< sent after the last message to this turn's process; not part of the history
  std::optional<json> schema;  ///< of the answer, which is JSON then
  std::string schema_field;    ///< where the client gave it
  sampling_settings sampling;
  reasoning_effort effort = reasoning_effort::none;
  std::optional<std::int64_t> thinking_tokens;      ///< asked for by number, else by the effort
  const char* thinking_field = "reasoning_effort";  ///< where the client asked for it
  const char* budget_field = nullptr;               ///< where it gave a number of tokens
  const char* effort_field = "reasoning_effort";
  bool no_thinking = false;                 ///< asked for in so many words
  const char* stop_field = "stop";          ///< where it gave stop sequences
  std::string sampling_place;               ///< of temperature, top_p and top_k: `options.`
  const char* messages_field = "messages";  ///< where it gave the messages
  bool thinks = false;          ///< the model will: asked to, or because it cannot do otherwise
  bool shows_thinking = false;  ///< to the client, which has asked for it
  std::optional<agent_request> agent;  ///< unset: the model has no tools but the client's
  /// How long the API keeps what it caches of the prompt: `5m` or `1h`; empty: the CLI's default.
  std::string cache_ttl;
  std::string cache_field;       ///< where the client asked for it
  bool on_fallback = false;      ///< by the account that answers while the plan is used up
  bool extra_usage = true;       ///< see `options::extra_usage`
  model_traits fallback_traits;  ///< of the model that it answers with
  bool stream = false;
  bool strict = false;                      ///< what is not honoured is an error
  std::vector<std::string> ignored_params;  ///< known fields that are not honoured, by name
};

/// What the user says where a client's history ends with the assistant or says nothing at all
/// (a "continue" button): the CLI has no prefill, a turn always begins with the user.
constexpr std::string_view continue_prompt = "Please continue.";

/// What the user says before a history that begins with the assistant (a bot's greeting): the
/// Messages API wants the user first.
constexpr std::string_view opening_prompt = "Hello.";

inline std::vector<std::string> call_ids(const message& entry) {
  std::vector<std::string> ids;
  for (const auto& part : entry.parts) {
    if (const auto* call = std::get_if<tool_call_part>(&part)) ids.push_back(call->id);
  }
  return ids;
}

/// Gives each call without an id one, and each result without one that of the first call before it
/// that no other result answers.
inline void complete_call_ids(std::vector<message>& messages) {
  std::vector<std::string> open;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    std::vector<std::string*> results;
    std::size_t calls = 0;
    for (auto& part : messages[i].parts) {
      if (auto* result = std::get_if<tool_result_part>(&part)) results.push_back(&result->call_id);
      auto* call = std::get_if<tool_call_part>(&part);
      if (call == nullptr) continue;
      ++calls;
      if (call->id.empty()) call->id = "call_" + std::to_string(i) + "_" + std::to_string(calls);
    }
    std::set<std::string> answered;
    for (const auto* id : results) answered.insert(*id);
    auto next = open.begin();
    for (auto* id : results) {
      if (!id->empty()) continue;
      next = std::find_if(next, open.end(),
                          [&](const std::string& one) { return answered.count(one) == 0; });
      if (next != open.end()) *id = *next++;
    }
    open = call_ids(messages[i]);
  }
}

/// Joins neighbours of one role and drops empty messages, as the Messages API wants them, and
/// makes sure that the user speaks first and last, tool results before all else.
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
  for (auto& entry : joined) {
    std::stable_partition(entry.parts.begin(), entry.parts.end(), [](const content_part& part) {
      return std::holds_alternative<tool_result_part>(part);
    });
  }
  complete_call_ids(joined);
  messages = std::move(joined);
}

constexpr std::size_t max_calls = 1024;  ///< of tools in one message

/// Ids of tool calls that the API takes (`^[a-zA-Z0-9_-]+$`), each given once: some makers number
/// calls anew in each turn. The CLI takes `call_1_2` for a second `call_1`, and drops its result.
class call_id_giver {
 public:
  std::string give(const std::string& own) {
    std::string clean = own.empty() ? "call" : own;
    for (char& c : clean) {
      if (!text::is_alphanumeric(c, "-")) c = '_';
    }
    auto id = clean;
    for (int& more = more_[clean]; is_taken(id);) id = clean + "-" + std::to_string(++more + 1);
    ids_.insert(id);
    stems_.insert(stem_of(id));
    return id;
  }

 private:
  bool is_taken(const std::string& id) const {
    return ids_.count(id) + ids_.count(stem_of(id)) + stems_.count(id) > 0;
  }

  /// Without `_` and digits at its end; empty where there are none.
  static std::string stem_of(const std::string& id) {
    const auto digits = id.find_last_not_of("0123456789") + 1;
    const bool numbered = digits > 1 && digits < id.size() && id[digits - 1] == '_';
    return numbered ? id.substr(0, digits - 1) : std::string();
  }

  std::set<std::string> ids_;
  std::set<std::string> stems_;
  std::map<std::string, int> more_;  ///< that were given with a number at their end
};

/// Gives each tool call an id of its own, and its result too. Throws a 400 unless each is answered
/// in the message after it, once, and nothing else is. The API would refuse it too, in words about
/// blocks that the client has never seen; the CLI drops a second call of an id without a word.
/// `field` is where the client gave the messages.
inline void match_tool_calls(std::vector<message>& messages, const char* field = "messages") {
  call_id_giver ids;
  std::vector<std::pair<std::string, std::string>> open;  // ids of the client's, and ours
  for (auto& entry : messages) {
    for (auto& part : entry.parts) {
      auto* result = std::get_if<tool_result_part>(&part);
      if (result == nullptr) continue;
      const auto found = std::find_if(open.begin(), open.end(), [&](const auto& call) {
        return call.first == result->call_id;
      });
      if (found == open.end()) {
        throw bad_field(field, "holds a result for tool call '" + result->call_id +
                                   "', which the assistant's message before it did not make "
                                   "or which is answered already");
      }
      result->call_id = found->second;
      open.erase(found);
    }
    if (!open.empty()) {
      throw bad_field(field, "must hold a result for each tool call right after it; '" +
                                 open.front().first + "' has none");
    }
    for (auto& part : entry.parts) {
      auto* call = std::get_if<tool_call_part>(&part);
      if (call == nullptr) continue;
      open.emplace_back(call->id, ids.give(call->id));
      call->id = open.back().second;
    }
    if (open.size() > max_calls) {
      throw bad_field(
          field, "must hold at most " + std::to_string(max_calls) + " tool calls in one message");
    }
  }
}

inline void append_agent(std::string& words, const agent_request& agent) {
  append_field(words, 'A', text::join(agent.tools, "\n"));
  append_field(words, 'D', text::join(agent.disallowed, "\n"));
  append_field(words, 'P', agent.permission_mode);
  append_field(words, 'T', std::to_string(agent.max_turns));
  append_field(words, 'W', agent.directory);
  append_field(words, 'I', text::join(agent.places, " "));
  append_field(words, 'H', agent.private_directory);
  append_field(words, 'M', agent.mcp_config);
}

/// The trace of a request: the client, the model, the instructions and the messages.
inline conversation_trace make_trace(const turn_request& request) {
  conversation_trace trace;
  append_field(trace.identity, 'k', request.client);
  append_field(trace.identity, 'm', request.model);
  append_field(trace.identity, 's', request.system);
  for (const auto& tool : request.tools) {
    append_field(trace.identity, 'o', tool.name);
    append_field(trace.identity, 'p', tool.description);
    append_json(trace.identity, tool.schema);
  }
  if (request.schema) append_field(trace.identity, 'j', dump(*request.schema));
  if (!request.web.empty()) append_json(trace.identity, request.web);
  append_field(trace.identity, 'x', name_of(request.effort));
  if (request.agent) append_agent(trace.identity, *request.agent);
  const message nothing;
  const message* before = &nothing;
  for (const auto& entry : request.messages) {
    append_message(trace, entry, *before);
    before = &entry;
  }
  return trace;
}

/// The conversation is that client's.
inline bool is_trace_of(const conversation_trace& trace, const std::string& client) {
  std::string begin;
  append_field(begin, 'k', client);
  return text::starts_with(trace.identity, begin);
}

//================================================================================================
// [07] fields - what the dialects read and write alike
// uses: text, errors, json_access, conversation | pure
//================================================================================================

/// Ids of sessions are free text: up to 256 characters, none of them a control character.
inline std::string parse_session_id(const reader& field) {
  const auto& id = field.string();
  const auto characters = text::count_characters(id);
  if (characters < 1 || characters > 256) field.fail("must be 1 to 256 characters long");
  if (std::any_of(id.begin(), id.end(), text::is_control)) field.fail("holds a control character");
  return id;
}

inline void parse_session(const reader& root, turn_request& request) {
  if (const auto id = root.find("session_id")) request.session = parse_session_id(*id);
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

/// The fields `model`, which may be left out, and `stream`.
inline void parse_model_and_stream(const reader& root, turn_request& turn) {
  if (const auto model = root.find("model")) turn.model = parse_model(*model);
  if (const auto stream = root.find("stream")) turn.stream = stream->boolean();
}

/// The bytes of a `data:TYPE;base64,…` URI (RFC 2397), or nullopt when it is none.
inline std::optional<media_part> try_data_uri(std::string_view uri) {
  constexpr std::string_view mark = ";base64,";
  uri = text::trim(uri);
  const auto comma = uri.find(mark);
  if (!text::starts_with(uri, "data:") || comma == std::string_view::npos) return std::nullopt;
  media_part media;
  media.media_type = text::to_lower(text::trim(uri.substr(5, comma - 5)));
  media.data = uri.substr(comma + mark.size());
  return media;
}

/// What the first bytes say that the data is; clients often send every image as a JPEG, and the API
/// refuses what is not what it is called.
inline std::string_view sniff_media_type(std::string_view base64) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 5> marks = {
      {{"iVBORw0KGgo", "image/png"},
       {"/9j/", "image/jpeg"},
       {"R0lGOD", "image/gif"},
       {"UklGR", "image/webp"},
       {"JVBERi0", "application/pdf"}}};
  for (const auto& [mark, type] : marks) {
    if (text::starts_with(base64, mark)) return type;
  }
  return {};
}

/// The types that the API reads.
constexpr std::array<std::string_view, 5> media_types = {"image/png", "image/jpeg", "image/gif",
                                                         "image/webp", "application/pdf"};

/// Settles the type, and throws a 400 for what the API would refuse after all of it was sent.
inline void check_media(const reader& field, media_part& media) {
  auto& data = media.data;
  const auto is_blank = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  data.erase(std::remove_if(data.begin(), data.end(), is_blank), data.end());
  if (!text::is_base64(data)) field.fail("is not valid base64");
  if (const auto type = sniff_media_type(media.data); !type.empty()) media.media_type = type;
  if (std::find(media_types.begin(), media_types.end(), media.media_type) == media_types.end()) {
    field.fail("is of the type '" + media.media_type +
               "'; image/png, image/jpeg, image/gif, image/webp and application/pdf are supported");
  }
  const std::size_t megabytes = media.media_type == "application/pdf" ? 32 : 5;
  if (media.data.size() / 4 * 3 > megabytes * 1024 * 1024) {
    field.fail("is too large; the limit is " + std::to_string(megabytes) + " MiB");
  }
}

inline bool is_http_url(const std::string& url) {
  const auto scheme = text::to_lower(std::string_view(url).substr(0, 8));
  return text::starts_with(scheme, "http://") || scheme == "https://";
}

/// An address that the API fetches.
inline const std::string& parse_address(const reader& field) {
  if (!is_http_url(field.string())) field.fail("must be an http or https URL");
  return field.string();
}

/// The schema of a tool's input or of an answer: the API takes only that of an object.
inline json parse_object_schema(const reader& field) {
  if (!field.value().is_object()) field.fail("must be a JSON Schema object");
  json schema = field.value();
  if (schema.find("type") == schema.end()) schema["type"] = "object";
  if (schema["type"] != "object") field.fail("must have the type 'object' at its root");
  return schema;
}

/// Notes, once, that a field asks for what the answer will not show.
inline void name_ignored(turn_request& request, std::string_view field) {
  auto& names = request.ignored_params;
  if (std::find(names.begin(), names.end(), field) == names.end()) names.emplace_back(field);
}

/// The same for one kind of what a field holds; for a field itself that is unknown, `place` is
/// empty. The kind is the client's own text: it is named as far as a header can hold it.
inline void name_ignored_kind(turn_request& request, std::string_view place,
                              std::string_view kind) {
  constexpr std::size_t max_names = 32;
  if (request.ignored_params.size() >= max_names) return;
  auto name = std::string(place) + (place.empty() ? "" : ".");
  for (const char c : kind.substr(0, 64)) name += text::is_alphanumeric(c) ? c : '_';
  name_ignored(request, name);
}

/// Names the keywords of an answer's schema that nobody here checks.
inline void name_unchecked(const json& schema, turn_request& request) {
  for (const char* name : {"unevaluatedProperties", "unevaluatedItems"}) {
    const auto& value = member_of(schema, name);
    if (!value.is_null() && value != true) name_ignored_kind(request, request.schema_field, name);
  }
  if (!schema.is_structured()) return;
  for (const auto& member : schema) name_unchecked(member, request);
}

inline void take_answer_schema(const reader& field, turn_request& request) {
  request.schema = parse_object_schema(field);
  request.schema_field = field.path();
  name_unchecked(field.value(), request);
  if (boolean_of(field.value(), "nullable")) name_ignored_kind(request, field.path(), "nullable");
}

/// What the answer has to look like, in OpenAI's words; `holder` is the member of the format that
/// holds the schema, null where it stands in the format itself. Clients of other servers put it
/// beside the type, `json_object` too: as `schema` (llama.cpp, Together, Fireworks),
/// `response_schema` (LiteLLM), `value` (TGI) or `json_schema` (Cohere). The CLI validates without
/// `strict`, too.
inline void parse_answer_format(const reader& format, turn_request& request,
                                const char* holder = nullptr) {
  const auto type = format.require("type");
  if (type.string() == "text") return;
  const bool any = type.string() == "json_object";
  if (!any && type.string() != "json_schema") type.fail("must be text, json_object or json_schema");
  const auto held = format.find("json_schema").value_or(format);
  std::optional<reader> schema;
  for (const char* name : {"value", "response_schema", "schema"}) {
    if (auto found = held.find(name)) schema = found;
  }
  if (!schema && any) schema = format.find("json_schema");
  if (!schema && !any) (holder ? format.require(holder) : format).require("schema");
  request.schema = json::object({{"type", "object"}});
  if (schema) take_answer_schema(*schema, request);
  if (const auto description = held.find("description")) {
    (*request.schema)["description"] = description->string();
  }
}

inline reasoning_effort parse_reasoning_effort(const reader& field) {
  const auto& names = reasoning_effort_names;
  const auto found = std::find(names.begin(), names.end(), field.string());
  if (found == names.end()) {
    field.fail("must be none, minimal, low, medium, high, xhigh or max");
  }
  return static_cast<reasoning_effort>(found - names.begin());
}

/// How hard the model is to think: an effort of OpenAI's, which `none` turns off.
inline void parse_reasoning_effort(const reader& field, turn_request& request) {
  request.effort = parse_reasoning_effort(field);
  request.no_thinking = request.effort == reasoning_effort::none;
}

/// True unless the value is one of those in `neutral`, a JSON array.
inline bool asks_for_something(const reader& value, const char* neutral) {
  const json values = parse_json(neutral);
  return std::find(values.begin(), values.end(), value.value()) == values.end();
}

/// Names the members that nothing here honours, where they ask for something.
inline void name_members(const reader& source, const std::string& field,
                         std::initializer_list<const char*> names, turn_request& request,
                         const char* neutral = "[false]") {
  for (const char* name : names) {
    const auto wish = source.find(name);
    if (wish && asks_for_something(*wish, neutral)) name_ignored(request, field + "." + name);
  }
}

/// A request's body. Notes which of its fields are looked for.
class body_reader : public reader {
 public:
  explicit body_reader(const json& body) : reader(body, &sought_) {}
  body_reader(const body_reader&) = delete;
  body_reader& operator=(const body_reader&) = delete;

  /// Names the fields that were not looked for, but for those that no answer depends on.
  void name_unread(turn_request& request) const {
    const std::set<std::string_view> quiet = {
        "user",          "metadata",         "client_metadata",     "store", "safety_identifier",
        "cache_control", "prompt_cache_key", "previous_response_id"};
    constexpr const char* neutral =
        R"([null,false,0,"",[],{},"auto","default","standard",{"edits":[]}])";
    for (const auto& [name, value] : this->value().items()) {
      if (sought_.count(name) + quiet.count(name) > 0) continue;
      if (asks_for_something(reader(value), neutral)) name_ignored_kind(request, {}, name);
    }
  }

 private:
  std::set<std::string> sought_;
};

/// For strict clients an unsupported field is an error.
inline void refuse_ignored(const turn_request& request) {
  if (!request.strict || request.ignored_params.empty()) return;
  throw bad_field(request.ignored_params.front(),
                  "cannot be honoured for this request (strict mode)");
}

/// What of a value a model can read: ciphertext and the bytes of media are left out.
inline json readable(const json& value) {
  if (!value.is_structured()) return value;
  json kept = value.is_array() ? json::array() : json::object();
  for (const auto& [name, member] : value.items()) {
    if (value.is_array()) kept.push_back(readable(member));
    if (value.is_array() || text::starts_with(name, "encrypted_")) continue;
    const auto bytes = name == "data" ? string_of(value, "data") : std::string();
    if (bytes.size() <= 64 || !text::is_base64(bytes)) kept[name] = readable(member);
  }
  return kept;
}

/// Where a content part or block of that type belongs; empty when nowhere.
inline std::string_view endpoint_of_part(std::string_view type) {
  for (const char* one : {"tool_use", "tool_result", "image", "document"}) {
    if (type == one) return "/v1/messages";
  }
  for (const char* one : {"input_text", "input_image", "input_file", "output_text"}) {
    if (type == one) return "/v1/responses";
  }
  return type == "image_url" || type == "file" ? "/v1/chat/completions" : "";
}

/// A text, or the texts of an array of text parts, a line each; unknown parts are only named.
inline std::string parse_instructions(const reader& content, turn_request& request) {
  if (content.is_string()) return content.string();
  if (!content.is_array()) content.fail("must be a string or an array of text parts");
  std::vector<std::string> texts;
  for (const auto& part : content.elements()) {
    const auto& kind = part.require("type").string();
    if (kind != "text" && kind != "input_text") {
      if (!endpoint_of_part(kind).empty()) {
        part.require("type").fail("'" + kind + "' is not supported here; only text is");
      }
      name_ignored_kind(request, request.messages_field, kind);
      continue;
    }
    auto words = part.require("text").string();
    if (!words.empty()) texts.push_back(std::move(words));
  }
  return text::join(texts, "\n");
}

/// Adds instructions to the system prompt.
inline void append_instructions(const reader& content, turn_request& request) {
  const auto words = parse_instructions(content, request);
  if (!request.system.empty() && !words.empty()) request.system += '\n';
  request.system += words;
}

/// Instructions among the messages: those before the first one are the system prompt. Later ones
/// stay at their place, or each would change the prompt of all earlier messages; Claude Code
/// marks its own such texts so.
inline void take_instructions(const reader& content, turn_request& request) {
  if (request.messages.empty()) return append_instructions(content, request);
  const auto words = parse_instructions(content, request);
  if (words.empty()) return;
  text_part marked{"<system-reminder>\n" + words + "\n</system-reminder>"};
  // After tools' results it belongs to the last of them, as Claude Code has it: so the process that
  // waits for them can be given it, too.
  auto& before = request.messages.back().parts;
  auto* result = before.empty() ? nullptr : std::get_if<tool_result_part>(&before.back());
  if (result != nullptr) {
    result->content.emplace_back(std::move(marked));
  } else {
    request.messages.push_back({role::user, {std::move(marked)}});
  }
}

/// More tools than the API takes, and few enough for checks of each against each.
constexpr std::size_t max_tools = 1024;

inline bool has_tool(const turn_request& request, std::string_view name) {
  const auto is_it = [&](const tool_definition& tool) { return tool.name == name; };
  const auto is_web = [&](const json& tool) { return string_of(tool, "name") == name; };
  return std::any_of(request.tools.begin(), request.tools.end(), is_it) ||
         std::any_of(request.web.begin(), request.web.end(), is_web);
}

inline void add_tool(const reader& source, tool_definition tool, turn_request& request) {
  if (request.tools.size() >= max_tools) {
    throw bad_field("tools", "must be at most " + std::to_string(max_tools));
  }
  if (tool.name.empty() || tool.name.size() > 256) {
    source.require("name").fail("must be 1 to 256 characters long");
  }
  if (has_tool(request, tool.name)) {
    source.fail("has the name '" + tool.name + "', as another one has");
  }
  name_members(source, "tools", {"defer_loading", "allowed_callers", "async", "output_schema"},
               request, R"([false,["direct"]])");
  if (!tool.more.contains("strict")) name_members(source, "tools", {"strict"}, request);
  request.tools.push_back(std::move(tool));
}

/// Adds a tool that the API itself runs.
inline void add_web_tool(const reader& source, json tool, turn_request& request) {
  const auto name = string_of(tool, "name");
  if (has_tool(request, name)) source.fail("has the name '" + name + "', as another one has");
  tool.erase("cache_control");  // the CLI sets its own
  request.web.push_back(std::move(tool));
}

/// OpenAI's search of the web as the API's own, in the version and with the limit that Claude
/// Code's WebSearch asks for. Wishes that the API does not know are named.
inline void add_web_search(const reader& source, const std::string& field, turn_request& request) {
  json tool =
      json::object({{"type", "web_search_20250305"}, {"name", "web_search"}, {"max_uses", 8}});
  const auto filters = source.find("filters");
  for (const char* list : {"allowed_domains", "blocked_domains"}) {
    const auto domains = filters ? filters->find(list) : std::nullopt;
    if (!domains || domains->elements().empty()) continue;
    for (const auto& domain : domains->elements()) tool[list].push_back(domain.string());
  }
  if (const auto location = source.find("user_location")) {
    const auto place = location->find("approximate").value_or(*location);
    for (const char* part : {"city", "region", "country", "timezone"}) {
      if (const auto value = place.find(part)) tool["user_location"][part] = value->string();
    }
    if (tool.contains("user_location")) tool["user_location"]["type"] = "approximate";
  }
  name_members(source, field,
               {"search_context_size", "external_web_access", "search_content_types"}, request,
               R"(["medium",true,["text"]])");
  add_web_tool(source, std::move(tool), request);
}

/// What a model has called a tool with: an object or its text. A history may hold any: one that the
/// token limit has cut, and of other models `null` or `[]` for nothing. The API takes objects only.
inline json parse_call_input(const std::optional<reader>& arguments) {
  if (!arguments) return json::object();
  json input = arguments->value();
  try {
    if (input.is_string()) input = parse_json(arguments->string());
  } catch (const api_error& bounds) {
    arguments->fail("cannot be read: " + bounds.message);
  }
  if (input.is_object()) return input;
  const bool nothing = arguments->is_string() && text::trim(arguments->string()).empty();
  if (nothing || input.empty()) return json::object();
  return json::object({{"_invalid_arguments", arguments->value()}});
}

/// Throws a 400 for a choice that the tools of the request do not leave.
inline void check_tool_choice(const reader& choice, const turn_request& request) {
  const auto& wanted = request.choice;
  auto names = wanted.allowed;
  if (wanted.kind == tool_choice::how::named) names.push_back(wanted.name);
  for (const auto& name : names) {
    if (has_tool(request, name)) continue;
    choice.fail("names '" + name + "', which is not among the tools");
  }
  if (wanted.kind == tool_choice::how::any && request.tools.empty() && request.web.empty()) {
    choice.fail("needs tools to choose from");
  }
}

/// True if a stream is to end with its usage.
inline bool parse_stream_options(const reader& root, turn_request& request) {
  const auto options = root.find("stream_options");
  if (!options) return false;
  name_members(*options, "stream_options", {"include_obfuscation"}, request);
  const auto usage = options->find("include_usage");
  return usage && usage->boolean();
}

/// Throws a 400 for a content part of a type that is not taken here, and names where it is.
[[noreturn]] inline void refuse_part(const reader& type, std::string_view taken) {
  const auto endpoint = endpoint_of_part(type.string());
  type.fail(
      "'" + type.string() + "' is not supported here; " +
      (endpoint.empty() ? std::string(taken) + " are" : "send it to " + std::string(endpoint)));
}

/// Tells a model, in a text of the user's, what it cannot be given as it is.
inline text_part make_note(const std::string& kind, const json& members) {
  return {"<system-reminder>\nThe conversation holds an item of the type '" + kind +
          "' here: " + dump(members) + "\n</system-reminder>"};
}

/// A part that nobody here can read: in the latest message a 400, since the answer would miss it.
/// An earlier one never ends a conversation; it is named, and sent in a neutral form.
inline text_part parse_foreign_part(const reader& part, turn_request& request, bool as_text,
                                    bool is_latest, std::string_view taken) {
  const auto type = part.require("type");
  if (is_latest) refuse_part(type, taken);
  name_ignored_kind(request, request.messages_field, type.string());
  if (!as_text) return {};
  return make_note(type.string(), readable(part.value()));
}

/// A call's result, of what a message or item holds.
inline tool_result_part make_result(std::string call_id, std::vector<content_part> parts) {
  tool_result_part result{std::move(call_id), {}, false};
  for (auto& part : parts) {
    if (auto* words = std::get_if<text_part>(&part)) result.content.emplace_back(std::move(*words));
    if (auto* media = std::get_if<media_part>(&part)) {
      result.content.emplace_back(std::move(*media));
    }
  }
  return result;
}

/// Of a call that failed the CLI passes on the text alone.
inline void name_lost_media(const tool_result_part& result, turn_request& request) {
  const auto is_media = [](const auto& one) { return std::holds_alternative<media_part>(one); };
  const auto& content = result.content;
  if (!result.is_error || std::none_of(content.begin(), content.end(), is_media)) return;
  name_ignored_kind(request, request.messages_field, "media_of_failed_calls");
}

/// Puts a history together, message by message. Borrows the messages.
class history_builder {
 public:
  explicit history_builder(std::vector<message>& messages) : messages_(messages) {}

  /// While tool calls wait for their results, the assistant's parts join the message that made the
  /// calls: the Messages API wants all calls of a message answered in the next one.
  void add(message next) {
    const bool joins = next.author == role::assistant && !open_calls_.empty();
    for (const auto& part : next.parts) follow_call(part);
    if (joins) {
      auto& parts = messages_[last_reply_].parts;
      std::move(next.parts.begin(), next.parts.end(), std::back_inserter(parts));
      return;
    }
    if (next.author == role::assistant) last_reply_ = messages_.size();
    if (next.author == role::user && !next.parts.empty()) finish();
    messages_.push_back(std::move(next));
  }

  /// Adds a call together with its result: another server has run the tool.
  void add_finished_call(std::string name, json input, tool_result_part result) {
    result.call_id = "past_call_" + std::to_string(messages_.size());
    add({role::assistant, {tool_call_part{result.call_id, std::move(name), std::move(input)}}});
    add({role::user, {std::move(result)}});
  }

  /// Tells the model what an item holds that is neither a message nor a call, in a text of the
  /// user's: one between two parts of the assistant's message would cut it in two.
  void add_note(const std::string& kind, const json& members) {
    notes_.emplace_back(make_note(kind, members));
    if (messages_.empty() || messages_.back().author == role::user) finish();
  }

  /// Adds the notes that no later message of the user's has taken.
  void finish() {
    if (!notes_.empty()) messages_.push_back({role::user, std::exchange(notes_, {})});
  }

 private:
  void follow_call(const content_part& part) {
    if (const auto* call = std::get_if<tool_call_part>(&part)) open_calls_.insert(call->id);
    const auto* result = std::get_if<tool_result_part>(&part);
    const auto found = result ? open_calls_.find(result->call_id) : open_calls_.end();
    if (found != open_calls_.end()) open_calls_.erase(found);
  }

  std::vector<message>& messages_;
  std::multiset<std::string> open_calls_;  ///< ids of the calls without a result so far
  std::size_t last_reply_ = 0;             ///< index of the assistant's latest message
  std::vector<content_part> notes_;        ///< for the next message of the user's
};

/// OpenAI's lifetimes of a cached prompt, all of which are longer than the API's shorter one.
inline void parse_prompt_cache(const reader& root, turn_request& turn) {
  const auto options = root.find("prompt_cache_options");
  const auto ttl = options ? options->find("ttl") : std::nullopt;
  const auto retention = root.find("prompt_cache_retention");
  const bool stays = retention && retention->string() == "24h";
  if (!ttl && !stays) return;
  turn.cache_ttl = "1h";
  turn.cache_field = ttl ? "prompt_cache_options.ttl" : "prompt_cache_retention";
}

/// Throws a 400 for a body that was meant for another endpoint, known by the field that each
/// requires.
inline void refuse_foreign_body(const reader& root, const char* own) {
  constexpr std::array<std::pair<const char*, const char*>, 3> fields = {
      {{"messages", "/v1/chat/completions or /v1/messages"},
       {"input", "/v1/responses"},
       {"prompt", "/v1/completions"}}};
  if (root.find(own)) return;
  for (const auto& [field, endpoint] : fields) {
    if (const auto foreign = root.find(field)) {
      foreign->fail("is not a field of this endpoint, which takes '" + std::string(own) +
                    "'; send this body to " + endpoint);
    }
  }
}

/// Throws a 400 for a tool in the form of one of OpenAI's endpoints.
inline void refuse_foreign_tool(const reader& tool) {
  if (tool.find("input_schema")) return;
  const bool is_chat = tool.find("function").has_value();
  const bool flat = string_of(tool.value(), "type") == "function" && tool.find("name");
  if (!is_chat && !flat) return;
  tool.fail(std::string("has the form of another endpoint's tools; send this body to ") +
            (is_chat ? "/v1/chat/completions" : "/v1/responses"));
}

/// `enable_tools` and `show_activity`: this proxy's own fields, the same in every dialect. What the
/// tools may do is settled where the operator's limits are known.
inline void parse_agent(const reader& root, turn_request& request) {
  const auto enabled = root.find("enable_tools");
  const auto shown = root.find("show_activity");
  if (enabled && enabled->boolean()) request.agent.emplace();
  if (shown && shown->boolean() && request.agent) request.agent->show_activity = true;
  if (!request.agent) return;
  for (const auto& tool : std::exchange(request.web, json::array())) {  // it has the CLI's own
    name_ignored_kind(request, "tools", string_of(tool, "name"));
  }
  if (!request.choice.allowed.empty()) name_ignored(request, "tool_choice");
  for (const auto& tool : request.tools) {  // beside an agent's own ones they go by MCP
    for (const auto& member : tool.more.items()) name_ignored(request, "tools." + member.key());
  }
}

inline json render_media(const media_part& media) {
  const bool image = media.kind == media_part::media_kind::image;
  json source =
      json::object({{"type", "base64"}, {"media_type", media.media_type}, {"data", media.data}});
  if (media.media_type == "text/plain") source["type"] = "text";
  if (!media.url.empty()) source = json::object({{"type", "url"}, {"url", media.url}});
  json block = json::object({{"type", image ? "image" : "document"}, {"source", source}});
  if (!media.title.empty()) block["title"] = media.title;
  block.update(media.more);
  return block;
}

inline json render_result(const tool_result_part& result) {
  json content = json::array();
  for (const auto& piece : result.content) {
    content.push_back(
        std::visit(overloaded{[](const text_part& plain) {
                                return json::object({{"type", "text"}, {"text", plain.text}});
                              },
                              [](const media_part& media) { return render_media(media); }},
                   piece));
  }
  json block = json::object(
      {{"type", "tool_result"}, {"tool_use_id", result.call_id}, {"content", content}});
  if (result.is_error) block["is_error"] = true;
  return block;
}

/// A part of a message as a content block of the Messages API, which the CLI speaks as well.
inline json render_part(const content_part& part) {
  return std::visit(
      overloaded{
          [](const text_part& plain) {
            return json::object({{"type", "text"}, {"text", plain.text}});
          },
          [](const media_part& media) { return render_media(media); },
          [](const thinking_part& thought) {
            if (!thought.redacted.empty()) {
              return json::object({{"type", "redacted_thinking"}, {"data", thought.redacted}});
            }
            return json::object({{"type", "thinking"},
                                 {"thinking", thought.text},
                                 {"signature", thought.signature}});
          },
          [](const tool_call_part& call) {
            return json::object({{"type", "tool_use"},
                                 {"id", call.id},
                                 {"name", call.name},
                                 {"input", call.input}});
          },
          [](const tool_result_part& result) { return render_result(result); },
          [](const api_block_part& kept) { return kept.block; },
      },
      part);
}

//================================================================================================
// [08] events - one answer in neutral form, as it comes
// uses: errors, json_access, conversation | pure
//================================================================================================
//
// The grammar, which every decoder keeps and every dialect relies on:
//
//   turn  := turn_started block* ( turn_stopped | turn_failed )   turn_failed may come at any time
//   block := block_started(i) block_delta(i)* block_stopped(i)     i = 0, 1, 2, never interleaved
//            | attempt_broken(i)                                   goes back to i

/// `activity` is what Claude Code's own tools were asked and have answered; `search` a call that
/// the API itself answers, such as a search of the web, and `found` the whole block of its result.
enum class block_kind { text, thinking, redacted_thinking, tool_call, activity, search, found };

/// Why the model stopped, in the Messages API's names. `turn_limit`: the agent was not done.
enum class stop_reason { end_turn, max_tokens, stop_sequence, tool_use, refusal, turn_limit };

/// Tokens as the API counts them: the four kinds of input do not overlap.
struct token_usage {
  std::int64_t input = 0;
  std::int64_t cache_read = 0;
  std::int64_t cache_write = 0;  ///< both lifetimes together
  std::int64_t cache_write_5m = 0;
  std::int64_t cache_write_1h = 0;
  std::int64_t output = 0;
  std::int64_t thinking = 0;       ///< part of the output; estimated where the API does not tell it
  std::optional<double> cost_usd;  ///< unknown when an answer was cut before the CLI reported it
  double charge_usd = 0;  ///< for budgets: the cost, or an estimate where it is unknown; see `turn`
  json api = json::object();  ///< as the API tells it, with what has no count here

  std::int64_t prompt() const { return input + cache_read + cache_write; }
  std::int64_t total() const { return prompt() + output; }
};

inline void add_usage(token_usage& sum, const token_usage& more) {
  sum.input += more.input;
  sum.output += more.output;
  sum.thinking += more.thinking;
  sum.cache_read += more.cache_read;
  sum.cache_write += more.cache_write;
  sum.cache_write_5m += more.cache_write_5m;
  sum.cache_write_1h += more.cache_write_1h;
  if (more.cost_usd) sum.cost_usd = sum.cost_usd.value_or(0) + *more.cost_usd;
  sum.charge_usd += more.charge_usd;
  if (!more.api.empty()) sum.api = more.api;
}

struct turn_started {
  std::string model;  ///< the id that the API resolved to
  token_usage usage;
};

struct block_started {
  std::size_t index = 0;
  block_kind kind = block_kind::text;
  std::string id;    ///< of a call
  std::string name;  ///< of a call
};

struct block_delta {
  std::size_t index = 0;
  std::string text;  ///< more text, thinking (or its ciphertext), or more of a tool call's JSON
};

struct block_stopped {
  std::size_t index = 0;
  std::string signature;           ///< of thinking
  json citations = json::array();  ///< of a text, as the API tells them
};

/// The connection to the API broke, and what it says now replaces all blocks from this one on. Only
/// where the answer is not streamed.
struct attempt_broken {
  std::size_t index = 0;
};

struct turn_stopped {
  stop_reason reason = stop_reason::end_turn;
  std::string stop_sequence;
  token_usage usage;
  json api = json::object();  ///< the end as the API tells it, unless `reason` differs
};

struct turn_failed {
  api_error error;
};

using event = std::variant<turn_started, block_started, block_delta, block_stopped, attempt_broken,
                           turn_stopped, turn_failed>;

inline bool ends_turn(const event& what) {
  return std::holds_alternative<turn_stopped>(what) || std::holds_alternative<turn_failed>(what);
}

/// A whole answer, for clients that do not stream.
struct turn_result {
  struct block {
    block_kind kind = block_kind::text;
    std::string text;
    std::string id;
    std::string name;
    std::string signature;
    json citations = json::array();
  };

  std::string model;
  std::vector<block> blocks;
  stop_reason reason = stop_reason::end_turn;
  std::string stop_sequence;
  token_usage usage;
  json api = json::object();  ///< see `turn_stopped`
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
                     result_.blocks.at(e.index).citations = e.citations;
                   },
                   [&](const attempt_broken& e) { result_.blocks.resize(e.index); },
                   [&](const turn_stopped& e) {
                     result_.reason = e.reason;
                     result_.stop_sequence = e.stop_sequence;
                     result_.usage = e.usage;
                     result_.api = e.api;
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
// [09] sse - server-sent events, and what a dialect has to offer
// uses: errors, json_access, conversation, events | pure
//================================================================================================

/// One `data:` event (https://html.spec.whatwg.org/multipage/server-sent-events.html).
inline std::string sse_data(std::string_view payload) {
  std::string frame("data: ");
  frame.append(payload).append("\n\n");
  return frame;
}

/// How long an answer has taken so far: in all, in the queue, from there until the model began, and
/// since then. Zero is not known.
struct answer_times {
  std::chrono::system_clock::time_point now{};
  std::chrono::nanoseconds total{0};
  std::chrono::nanoseconds queued{0};
  std::chrono::nanoseconds first{0};
  std::chrono::nanoseconds rest{0};
};

/// What an answer needs that is in no event.
struct reply_context {
  std::string id;            ///< random part of the answer's id
  std::int64_t created = 0;  ///< unix seconds
  std::string request_id = {};
  std::function<void(const json&)> keep = {};  ///< takes the whole answer, where it is kept
  std::function<answer_times()> times = [] { return answer_times(); };
  bool web = false;  ///< this client may have the API search the web
};

/// Writes the answer to one request in one dialect: whole, or event by event. An answer may hold
/// several choices (`n`), each a turn of its own. Owned by the request; used by one thread.
class reply {
 public:
  virtual ~reply() = default;

  /// Appends the bytes that tell one event of one choice to a client that streams.
  virtual void write(std::size_t choice, const event& what, std::string& out) = 0;

  /// Appends what resets an idle client's clock and changes nothing.
  virtual void write_keep_alive(std::string& out) = 0;

  /// The media type of a stream.
  virtual const char* stream_type() const { return "text/event-stream"; }

  /// The body for a client that does not stream; one result for each choice.
  virtual std::string render(const std::vector<turn_result>& results) const = 0;

 protected:
  reply() = default;
  reply(const reply&) = default;
  reply& operator=(const reply&) = default;
};

/// A request, and how to answer it. Each choice is a turn of its own; all are of one client. Where
/// there is none, the model is not asked.
struct parsed_request {
  std::vector<turn_request> turns;
  std::unique_ptr<claude_openai::reply> reply;
};

/// One dialect: what the route table needs to know of it.
struct dialect_functions {
  std::string_view name;
  parsed_request (*parse)(const json& body, const reply_context& context);
  std::string (*render_error)(const api_error& error, const std::string& request_id);
  int (*status)(error_kind kind);
};

//================================================================================================
// [10] openai_chat - chat completions: parses requests, writes answers
// uses: text, errors, json_access, conversation, fields, events, sse | pure
//================================================================================================
//
// https://platform.openai.com/docs/api-reference/chat
//
// Request   {"model", "messages": [{"role": "developer|system|user|assistant|tool", "content",
//            "tool_calls"?, "tool_call_id"?}], "tools"?: [{"type": "function", "function": {"name",
//            "description", "parameters"}}], "tool_choice"?, "response_format"?, "stream"?, ...}
// Answer    {"id": "chatcmpl-1", "object": "chat.completion", "created", "model", "choices": [
//            {"index": 0, "message": {"role": "assistant", "content": "Hi", "tool_calls"?: [
//            {"id", "type": "function", "function": {"name", "arguments": "{...}"}}]},
//            "finish_reason": "stop|length|tool_calls|content_filter"}], "usage": {"prompt_tokens",
//            "completion_tokens", "total_tokens"}}
// Stream    data: {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": DELTA}]}
//           DELTA, in order: {"role": "assistant", "content": ""}, {"content": "H"}, ...,
//             {"tool_calls": [{"index": 0, "id", "type", "function": {"name", "arguments": ""}}]},
//             {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, ...,
//             {} beside "finish_reason"
//           data: {"choices": [], "usage": {...}}    with stream_options.include_usage
//           data: [DONE]
// Error     {"error": {"message", "type", "param", "code"}}; in a stream a data line, then [DONE]

namespace openai_chat {

/// `{"error":{message,type,param,code}}`: the SDKs raise by status and show these.
inline std::string render_error(const api_error& error, const std::string& = {}) {
  const auto& names = names_of(error.kind);
  const std::string code = error.code.empty() ? names.openai_code : error.code;
  json body = json::object({{"message", error.message},
                            {"type", names.openai_type},
                            {"param", error.param.empty() ? json() : json(error.param)},
                            {"code", code.empty() ? json() : json(code)}});
  if (error.kind == error_kind::too_many_requests && error.retry_after) {
    body["retry_after"] = std::chrono::ceil<std::chrono::seconds>(*error.retry_after).count();
  }
  return dump(json::object({{"error", body}}));
}

inline const char* finish_reason(stop_reason reason) {
  switch (reason) {
    case stop_reason::end_turn:
    case stop_reason::stop_sequence: return "stop";
    case stop_reason::turn_limit:
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
       {"completion_tokens_details", json::object({{"reasoning_tokens", usage.thinking}})},
       {"cache_read_input_tokens", usage.cache_read},
       {"cache_creation_input_tokens", usage.cache_write},
       {"cache_creation", json::object({{"ephemeral_5m_input_tokens", usage.cache_write_5m},
                                        {"ephemeral_1h_input_tokens", usage.cache_write_1h}})}});
  if (usage.cost_usd) rendered["cost"] = *usage.cost_usd;
  return rendered;
}

/// The text that a custom tool is called with: the only member of its input.
inline std::string freeform_input(const std::string& arguments) {
  return string_of(try_parse_json(arguments), "input");
}

/// Why the model refused, in the API's words; null when there is none.
inline const json& refusal_of(const json& end) {
  return member_of(member_of(end, "stop_details"), "explanation");
}

/// The pages that the API cites for a piece of text, which has this place in the whole; in Unicode
/// characters.
inline json url_citations(const json& citations, std::size_t begin, std::size_t end) {
  json cited = json::array();
  for (const auto& page : citations) {
    if (string_of(page, "url").empty()) continue;  // of a document
    cited.push_back(json::object({{"type", "url_citation"},
                                  {"start_index", begin},
                                  {"end_index", end},
                                  {"url", page["url"]},
                                  {"title", string_of(page, "title")}}));
  }
  return cited;
}

/// How a client wants its answer written.
struct reply_style {
  bool include_usage = false;     ///< in a stream; the whole answer always has it
  bool legacy_functions = false;  ///< `function_call` instead of `tool_calls`
  std::size_t choices = 1;
  std::vector<std::string> freeform;  ///< names of custom tools, whose input is plain text
};

/// Writes `chat.completion` and `chat.completion.chunk` objects.
class chat_reply final : public reply {
 public:
  chat_reply(const reply_context& context, const reply_style& style)
      : id_("chatcmpl-" + context.id),
        created_(context.created),
        style_(style),
        choices_(style.choices) {}

  void write(std::size_t choice, const event& what, std::string& out) override {
    auto& state = choices_.at(choice);
    std::visit(overloaded{
                   [&](const turn_started& e) { write_start(choice, e, out); },
                   [&](const block_started& e) { write_block(choice, e, out); },
                   [&](const block_delta& e) {
                     const auto kind = state.kind;
                     if (kind == block_kind::redacted_thinking || kind >= block_kind::search)
                       return;
                     if (kind == block_kind::text) state.end += text::count_characters(e.text);
                     if (state.freeform) state.arguments += e.text;
                     if (!state.freeform) write_choice(choice, delta_of(state, e.text), out);
                   },
                   [&](const block_stopped& e) { write_block_end(choice, e, out); },
                   [](const attempt_broken&) {},  // of answers that are not streamed
                   [&](const turn_stopped& e) { write_stop(choice, e, out); },
                   [&](const turn_failed& e) {
                     out += sse_data(render_error(e.error)) + sse_data("[DONE]");
                   },
               },
               what);
  }

  void write_keep_alive(std::string& out) override { out += ": keep-alive\n\n"; }

  std::string render(const std::vector<turn_result>& results) const override {
    json choices = json::array();
    token_usage usage;
    for (const auto& result : results) {
      choices.push_back(json::object({{"index", choices.size()},
                                      {"message", render_message(result)},
                                      {"logprobs", json()},
                                      {"finish_reason", finish_reason(result.reason)}}));
      add_usage(usage, result.usage);
    }
    json whole = head("chat.completion", results.front().model);
    whole["choices"] = std::move(choices);
    whole["usage"] = render_usage(usage);
    return dump(whole);
  }

 private:
  struct choice_state {
    block_kind kind = block_kind::text;
    std::size_t calls = 0;
    bool freeform = false;  ///< the block is a custom tool's call: its text is known at its end
    std::string arguments;  ///< of such a call
    std::size_t begin = 0;  ///< of the block in the content
    std::size_t end = 0;    ///< of the content, so far
  };

  static json annotations_of(const json& citations, std::size_t begin, std::size_t end) {
    json annotations = url_citations(citations, begin, end);
    for (auto& one : annotations) {
      one.erase("type");
      one = json::object({{"type", "url_citation"}, {"url_citation", one}});
    }
    return annotations;
  }

  bool is_freeform(const std::string& name) const {
    return std::find(style_.freeform.begin(), style_.freeform.end(), name) != style_.freeform.end();
  }

  json call_of(const std::string& id, const std::string& name, const std::string& arguments) const {
    const bool freeform = is_freeform(name);
    const char* type = freeform ? "custom" : "function";
    const json input = freeform ? freeform_input(arguments) : arguments;
    return json::object(
        {{"id", id},
         {"type", type},
         {type, json::object({{"name", name}, {freeform ? "input" : "arguments", input}})}});
  }

  /// Legacy clients (`functions`) expect one call, as `function_call`.
  const char* finish_reason(stop_reason reason) const {
    if (reason == stop_reason::tool_use && style_.legacy_functions) return "function_call";
    return openai_chat::finish_reason(reason);
  }

  json render_message(const turn_result& result) const {
    std::string content;
    std::string reasoning;
    json calls = json::array();
    json annotations = json::array();
    std::size_t end = 0;
    for (const auto& block : result.blocks) {
      switch (block.kind) {
        case block_kind::text: {
          const auto begin = std::exchange(end, end + text::count_characters(block.text));
          content += block.text;
          for (auto& one : annotations_of(block.citations, begin, end)) annotations.push_back(one);
          break;
        }
        case block_kind::thinking:
        case block_kind::activity: reasoning += block.text; break;
        case block_kind::search:
        case block_kind::found:
        case block_kind::redacted_thinking: break;
        case block_kind::tool_call: calls.push_back(call_of(block.id, block.name, block.text));
      }
    }
    const bool only_calls = content.empty() && !calls.empty();
    json message = json::object({{"role", "assistant"},
                                 {"content", only_calls ? json() : json(content)},
                                 {"refusal", refusal_of(result.api)},
                                 {"annotations", std::move(annotations)}});
    if (!reasoning.empty()) message["reasoning_content"] = std::move(reasoning);
    if (calls.empty()) return message;
    if (style_.legacy_functions) {
      message["function_call"] = calls[0]["function"];
    } else {
      message["tool_calls"] = std::move(calls);
    }
    return message;
  }

  json head(const char* object, const std::string& model) const {
    return json::object({{"id", id_},
                         {"object", object},
                         {"created", created_},
                         {"model", model},
                         {"system_fingerprint", json()}});
  }

  /// Everything before the delta is the same in all chunks, so it is written once.
  void write_start(std::size_t choice, const turn_started& started, std::string& out) {
    if (chunk_head_.empty()) {
      chunk_head_ = dump(head("chat.completion.chunk", started.model));
      chunk_head_.back() = ',';
    }
    write_choice(choice, R"({"role":"assistant","content":""})", out);
  }

  /// A call is announced with its id and name; its arguments follow piece by piece.
  void write_block(std::size_t choice, const block_started& started, std::string& out) {
    auto& state = choices_.at(choice);
    state.kind = started.kind;
    state.begin = state.end;
    state.freeform = started.kind == block_kind::tool_call && is_freeform(started.name);
    state.arguments.clear();
    if (started.kind != block_kind::tool_call) return;
    ++state.calls;
    json call = json::object({{"index", state.calls - 1}});
    call.update(call_of(started.id, started.name, {}));
    const json delta = style_.legacy_functions
                           ? json::object({{"function_call", call["function"]}})
                           : json::object({{"tool_calls", json::array({call})}});
    write_choice(choice, dump(delta), out);
  }

  void write_block_end(std::size_t choice, const block_stopped& stopped, std::string& out) {
    auto& state = choices_.at(choice);
    const json annotations = annotations_of(stopped.citations, state.begin, state.end);
    if (!annotations.empty()) {
      write_choice(choice, dump(json::object({{"annotations", annotations}})), out);
    }
    if (!std::exchange(state.freeform, false)) return;
    const json input = json::object({{"input", freeform_input(state.arguments)}});
    const json call = json::object({{"index", state.calls - 1}, {"custom", input}});
    write_choice(choice, dump(json::object({{"tool_calls", json::array({call})}})), out);
  }

  std::string delta_of(const choice_state& state, const std::string& more) const {
    const auto quoted = dump(json(more));
    switch (state.kind) {
      case block_kind::text: return R"({"content":)" + quoted + "}";
      case block_kind::thinking:
      case block_kind::activity: return R"({"reasoning_content":)" + quoted + "}";
      case block_kind::search:
      case block_kind::found:
      case block_kind::redacted_thinking:
      case block_kind::tool_call: break;
    }
    if (style_.legacy_functions) return R"({"function_call":{"arguments":)" + quoted + "}}";
    return R"({"tool_calls":[{"index":)" + std::to_string(state.calls - 1) +
           R"(,"function":{"arguments":)" + quoted + "}}]}";
  }

  void write_stop(std::size_t choice, const turn_stopped& stopped, std::string& out) {
    const json& refusal = refusal_of(stopped.api);
    if (!refusal.is_null()) write_choice(choice, R"({"refusal":)" + dump(refusal) + "}", out);
    write_choice(choice, "{}", out, '"' + std::string(finish_reason(stopped.reason)) + '"');
    add_usage(usage_, stopped.usage);
    if (++stopped_ < choices_.size()) return;
    if (style_.include_usage) {
      out += sse_data(chunk_head_ + R"("choices":[],"usage":)" + dump(render_usage(usage_)) + "}");
    }
    out += sse_data("[DONE]");
  }

  void write_choice(std::size_t choice, const std::string& delta, std::string& out,
                    const std::string& reason = "null") const {
    out += sse_data(chunk_head_ + R"("choices":[{"index":)" + std::to_string(choice) +
                    R"(,"delta":)" + delta + R"(,"logprobs":null,"finish_reason":)" + reason +
                    (style_.include_usage ? R"(}],"usage":null})" : "}]}"));
  }

  std::string id_;
  std::int64_t created_;
  reply_style style_;
  std::vector<choice_state> choices_;
  std::string chunk_head_;
  token_usage usage_;        ///< of the choices that have stopped
  std::size_t stopped_ = 0;  ///< how many these are
};

/// A field that is known and checked, but never honoured: the API has nothing like it. `neutral` is
/// a JSON array of the values that ask for nothing, so that they need not be reported.
struct ignored_field {
  enum class shape { number, integer, boolean, any };
  const char* name;
  shape kind;
  double low;
  double high;
  const char* neutral;
};

constexpr std::array<ignored_field, 7> ignored_fields = {{
    {"presence_penalty", ignored_field::shape::number, -2, 2, "[0]"},
    {"frequency_penalty", ignored_field::shape::number, -2, 2, "[0]"},
    {"seed", ignored_field::shape::integer, -9.2e18, 9.2e18, "[]"},
    {"top_logprobs", ignored_field::shape::integer, 0, 20, "[0]"},
    {"logprobs", ignored_field::shape::boolean, 0, 0, "[false]"},
    {"modalities", ignored_field::shape::any, 0, 0, R"([["text"]])"},
    {"verbosity", ignored_field::shape::any, 0, 0, R"(["medium"])"},
}};

/// The fields of the API and of other servers' that are honoured or named, as a JSON array.
constexpr const char* known_fields =
    R"(["model","messages","stream","stream_options","temperature","top_p","max_tokens","stop",)"
    R"("n","max_completion_tokens","tools","functions","tool_choice","function_call",)"
    R"("parallel_tool_calls","user","metadata","store","response_format","prompt_cache_options",)"
    R"("prompt_cache_retention","session_id","enable_tools","show_activity","reasoning_effort",)"
    R"("safety_identifier","web_search_options","guided_json","json_schema","structured_outputs",)"
    R"("logit_bias","audio","prediction","moderation","reasoning","service_tier"])";

/// True when the value is not neutral: the field has to be named as ignored.
inline bool check_ignored(const ignored_field& field, const reader& value) {
  switch (field.kind) {
    case ignored_field::shape::number: value.number(field.low, field.high); break;
    case ignored_field::shape::integer:
      value.integer(static_cast<std::int64_t>(field.low), static_cast<std::int64_t>(field.high));
      break;
    case ignored_field::shape::boolean: value.boolean(); break;
    case ignored_field::shape::any: break;
  }
  return asks_for_something(value, field.neutral);
}

/// An image's `data:` URI, or an address that the API fetches.
inline media_part parse_image(const reader& url, const std::optional<reader>& detail,
                              turn_request& request) {
  if (detail && detail->string() != "auto") name_ignored(request, "image_url.detail");
  if (auto media = try_data_uri(url.string())) {
    check_media(url, *media);
    if (!text::starts_with(media->media_type, "image/")) url.fail("is not an image");
    return *media;
  }
  if (!is_http_url(url.string())) {
    url.fail("must be a data:image/…;base64 URI or an http or https URL");
  }
  media_part media;
  media.url = url.string();
  return media;
}

/// `{"file_data", "filename"}`; the API reads PDF.
inline media_part parse_file(const reader& source) {
  if (const auto id = source.find("file_id")) {
    id->fail("is not supported: this server keeps no files; send 'file_data'");
  }
  const auto data = source.require("file_data");
  auto media = try_data_uri(data.string()).value_or(media_part{});
  if (media.data.empty()) media.data = data.string();
  check_media(data, media);
  media.kind = media_part::media_kind::document;
  if (media.media_type != "application/pdf") data.fail("must be a PDF");
  if (const auto name = source.find("filename")) media.title = name->string();
  return media;
}

/// The content of a message, or nothing. Cursor has calls and results of the Messages API there.
inline std::vector<content_part> parse_content(const reader& message, turn_request& request,
                                               const std::string& speaker, bool is_latest) {
  const bool takes_media = speaker == "user" || speaker == "tool";
  const auto content = message.find("content");
  std::vector<content_part> parts;
  if (!content) return parts;
  if (content->is_string()) {
    if (!content->string().empty()) parts.emplace_back(text_part{content->string()});
    return parts;
  }
  if (!content->is_array()) content->fail("must be a string or an array of content parts");
  for (const auto& part : content->elements()) {
    const auto& kind = part.require("type").string();
    if (kind == "text" || kind == "refusal") {
      auto words = part.require(kind.c_str()).string();
      if (!words.empty()) parts.emplace_back(text_part{std::move(words)});
    } else if (kind == "image_url" && takes_media) {
      const auto image = part.require("image_url");
      parts.emplace_back(parse_image(image.require("url"), image.find("detail"), request));
    } else if (kind == "file" && takes_media) {
      parts.emplace_back(parse_file(part.require("file")));
    } else if (kind == "tool_result" && speaker == "user") {
      auto result = make_result(part.require("tool_use_id").string(),
                                parse_content(part, request, "tool", is_latest));
      result.is_error = boolean_of(part.value(), "is_error");
      name_lost_media(result, request);
      parts.emplace_back(std::move(result));
    } else if (kind == "tool_use" && speaker == "assistant") {
      parts.emplace_back(tool_call_part{part.require("id").string(), part.require("name").string(),
                                        parse_call_input(part.find("input"))});
    } else {
      const char* taken = takes_media ? "text, image_url and file parts" : "only text parts";
      auto note = parse_foreign_part(part, request, takes_media, is_latest, taken);
      if (!note.text.empty()) parts.emplace_back(std::move(note));
    }
  }
  return parts;
}

inline tool_call_part parse_function_call(const reader& function, std::string id) {
  return {std::move(id), function.require("name").string(),
          parse_call_input(function.find("arguments"))};
}

/// Functions of the old kind have no ids. A call may stand in the content as well.
inline void parse_calls(const reader& source, message& entry) {
  const auto held = call_ids(entry);
  if (const auto calls = source.find("tool_calls")) {
    for (const auto& call : calls->elements()) {
      const auto id = call.require("id").string();
      if (std::find(held.begin(), held.end(), id) != held.end()) continue;
      if (const auto custom = call.find("custom")) {
        const json input = json::object({{"input", custom->require("input").string()}});
        entry.parts.emplace_back(tool_call_part{id, custom->require("name").string(), input});
      } else {
        entry.parts.emplace_back(parse_function_call(call.require("function"), id));
      }
    }
  }
  if (const auto function = source.find("function_call")) {
    entry.parts.emplace_back(parse_function_call(*function, {}));
  }
}

/// Adds one message; instructions (system, developer) go to the system prompt in order.
inline void parse_message(const reader& source, turn_request& request, bool is_latest) {
  const auto name = source.require("role");
  const auto& speaker = name.string();
  message entry;
  const bool answers = speaker == "tool" || speaker == "function";
  if (!answers) {
    name_members(source, "messages",
                 {"name", "audio", "images", "reasoning", "reasoning_details", "thinking_blocks"},
                 request, R"([false,"",[]])");
  }
  if (speaker == "system" || speaker == "developer") {
    if (const auto content = source.find("content")) take_instructions(*content, request);
    return;
  }
  if (answers) {
    auto id = speaker == "tool" ? source.require("tool_call_id").string() : std::string();
    auto content = parse_content(source, request, speaker, is_latest);
    entry.parts.emplace_back(make_result(std::move(id), std::move(content)));
  } else if (speaker == "user" || speaker == "assistant") {
    entry.parts = parse_content(source, request, speaker, is_latest);
  } else {
    name.fail("must be system, developer, user, assistant or tool");
  }
  if (speaker == "assistant") {
    entry.author = role::assistant;
    const auto refusal = source.find("refusal");
    if (refusal && !refusal->string().empty())
      entry.parts.emplace_back(text_part{refusal->string()});
    if (source.find("audio") && entry.parts.empty()) entry.parts.emplace_back(text_part{"[audio]"});
    parse_calls(source, entry);
  }
  request.messages.push_back(std::move(entry));
}

/// A function in the words of either maker.
inline tool_definition parse_function(const reader& function) {
  tool_definition tool{function.require("name").string(), {}, json::object()};
  if (const auto description = function.find("description"))
    tool.description = description->string();
  auto schema = function.find("parameters");
  if (!schema) schema = function.find("input_schema");
  tool.schema = json::object({{"type", "object"}, {"properties", json::object()}});
  if (schema) tool.schema = parse_object_schema(*schema);
  return tool;
}

/// A tool that takes plain text is a function of one argument to the model. Its grammar stands in
/// the format (Responses) or in a member of it (chat).
inline tool_definition parse_custom_tool(const reader& tool) {
  tool_definition fresh{tool.require("name").string(), {}, {}};
  if (const auto description = tool.find("description")) fresh.description = description->string();
  auto format = tool.find("format");
  if (format && format->find("grammar")) format = format->find("grammar");
  if (const auto grammar = format ? format->find("definition") : std::nullopt) {
    fresh.description += "\n\nThe input must follow this " + string_of(format->value(), "syntax") +
                         " grammar:\n" + grammar->string();
  }
  const json input = json::object({{"type", "string"}, {"description", "The whole input"}});
  fresh.schema = json::object({{"type", "object"},
                               {"properties", json::object({{"input", input}})},
                               {"required", json::array({"input"})}});
  return fresh;
}

/// A tool in chat's own form, or, as some clients send them here, in that of Responses or Messages.
inline void parse_tool(const reader& tool, turn_request& request, reply_style& style) {
  const auto type = tool.find("type");
  const bool own = tool.find("input_schema").has_value();
  const auto kind = type ? type->string() : own ? "custom" : "function";
  if (!type && !own) tool.require("type");
  if (kind != "function" && kind != "custom") {
    type->fail("must be function or custom: no other tools run here");
  }
  const auto held = tool.find(kind.c_str());
  const bool flat = tool.find("name").has_value();
  const auto function = held || flat ? held.value_or(tool) : tool.require(kind.c_str());
  const bool freeform = kind == "custom" && !own;
  auto fresh = freeform ? parse_custom_tool(function) : parse_function(function);
  if (freeform) style.freeform.push_back(fresh.name);
  add_tool(function, std::move(fresh), request);
}

inline void parse_tools(const reader& root, turn_request& request, reply_style& style) {
  if (const auto tools = root.find("tools")) {
    for (const auto& tool : tools->elements()) parse_tool(tool, request, style);
  }
  if (const auto functions = root.find("functions")) {
    for (const auto& function : functions->elements()) {
      add_tool(function, parse_function(function), request);
    }
  }
}

/// What defines a tool: itself (Responses, Messages) or the member that its type names (chat).
inline reader definition_of(const reader& tool) {
  const auto held = tool.find("function");
  return held ? *held : tool.find("custom").value_or(tool);
}

/// A search of the web has no name of its own.
inline std::string chosen_name(const reader& tool) {
  const bool search = text::starts_with(string_of(tool.value(), "type"), "web_search");
  return search ? "web_search" : definition_of(tool).require("name").string();
}

/// A word, alone or as a type, the tools that may be called, or the one that must be.
inline void parse_tool_choice(const reader& choice, turn_request& request) {
  auto& wanted = request.choice;
  auto word = choice.is_string() ? choice.string() : string_of(choice.value(), "type");
  if (word == "allowed_tools") {
    const auto allowed = choice.find("allowed_tools").value_or(choice);
    for (const auto& tool : allowed.require("tools").elements()) {
      wanted.allowed.push_back(chosen_name(tool));
    }
    word = string_of(allowed.value(), "mode");
  }
  if (word == "none") {
    wanted.kind = tool_choice::how::none;
  } else if (word == "required" || word == "any") {
    wanted.kind = tool_choice::how::any;
  } else if (choice.is_string() && word != "auto") {
    choice.fail("must be auto, none, required or a tool");
  } else if (word != "auto" && wanted.allowed.empty()) {
    wanted.kind = tool_choice::how::named;
    wanted.name = chosen_name(choice);
  }
  check_tool_choice(choice, request);
}

inline void parse_tool_choices(const reader& root, turn_request& request) {
  for (const char* name : {"tool_choice", "function_call"}) {
    if (const auto choice = root.find(name)) parse_tool_choice(*choice, request);
  }
  if (root.find("functions")) request.choice.parallel = false;
  if (const auto parallel = root.find("parallel_tool_calls")) {
    request.choice.parallel = parallel->boolean();
  }
}

inline void parse_sampling(const reader& root, turn_request& request) {
  auto& sampling = request.sampling;
  if (const auto value = root.find("temperature")) sampling.temperature = value->number(0, 2);
  if (const auto value = root.find("top_p")) sampling.top_p = value->number(0, 1);
  constexpr std::int64_t most = 1'000'000'000;
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {  // the latter wins
    if (const auto value = root.find(name)) sampling.max_tokens = value->integer(1, most);
  }
  if (const auto stop = root.find("stop")) {
    if (stop->is_string()) sampling.stop.push_back(stop->string());
    if (!stop->is_string()) {
      for (const auto& one : stop->elements()) sampling.stop.push_back(one.string());
    }
    if (sampling.stop.size() > 4) stop->fail("must be at most 4 texts");
  }
  if (const auto effort = root.find("reasoning_effort")) parse_reasoning_effort(*effort, request);
}

inline void parse_style(const reader& root, turn_request& request, reply_style& style) {
  if (const auto n = root.find("n")) style.choices = static_cast<std::size_t>(n->integer(1, 8));
  if (style.choices > 1 && !request.session.empty()) {
    throw bad_field("n", "must be 1 in a session, which goes on with one answer");
  }
  const auto functions = root.find("functions");
  style.legacy_functions = functions && !functions->elements().empty();
  style.include_usage = parse_stream_options(root, request);
}

/// The form of the answer. vLLM's and llama.cpp's clients send a schema outside of
/// `response_format`; OpenRouter's `structured_outputs` is a boolean, which asks for nothing.
inline void parse_formats(const reader& root, turn_request& request) {
  if (const auto format = root.find("response_format")) {
    parse_answer_format(*format, request, "json_schema");
  }
  for (const char* name : {"guided_json", "json_schema"}) {
    if (const auto schema = root.find(name)) take_answer_schema(*schema, request);
  }
  const auto guide = root.find("structured_outputs");
  if (guide && !guide->value().is_boolean()) {
    if (const auto schema = guide->find("json")) take_answer_schema(*schema, request);
    name_members(*guide, "structured_outputs",
                 {"choice", "regex", "grammar", "structural_tag", "json_object"}, request);
  }
}

/// Chat completion request to neutral request. Unknown fields are only named: clients send many.
inline parsed_request parse(const json& body, const reply_context& context) {
  const body_reader root(body);
  parsed_request parsed;
  turn_request turn;
  refuse_foreign_body(root, "messages");
  if (const auto system = root.find("system")) {
    system->fail("is a field of the Messages API; send this body to /v1/messages");
  }
  const auto messages = root.require("messages");
  const auto all = messages.elements();
  if (all.empty()) messages.fail("must hold at least one message");
  for (const auto& one : all) parse_message(one, turn, &one == &all.back());
  if (all.back().require("role").string() == "user" && turn.messages.back().parts.empty()) {
    throw bad_field(all.back().path() + ".content", "must not be empty in the last message");
  }
  normalize(turn.messages);
  reply_style style;
  parse_tools(root, turn, style);
  if (const auto search = root.find("web_search_options")) {
    if (context.web) add_web_search(*search, "web_search_options", turn);
    if (!context.web) name_ignored(turn, "web_search_options");
  }
  parse_tool_choices(root, turn);
  parse_formats(root, turn);
  parse_sampling(root, turn);
  parse_prompt_cache(root, turn);
  parse_model_and_stream(root, turn);
  parse_session(root, turn);
  parse_agent(root, turn);
  parse_style(root, turn, style);
  for (const auto& field : ignored_fields) {
    const auto value = root.find(field.name);
    if (value && check_ignored(field, *value)) name_ignored(turn, field.name);
  }
  root.name_unread(turn);
  parsed.turns.assign(style.choices, turn);
  parsed.reply = std::make_unique<chat_reply>(context, style);
  return parsed;
}

/// What `POST /v1/debug/request` says of a body, in the reference wrapper's shape: what it holds,
/// and what is wrong with it as a chat request.
inline json render_diagnosis(std::string_view raw) {
  json parsed = json(json::value_t::discarded);
  json errors = json::array();
  try {
    parsed = parse_json(raw);
    parse(parse_body(raw), {});
  } catch (const api_error& error) {
    errors.push_back(
        json::object({{"field", error.param},
                      {"message", error.message},
                      {"type", error.param.empty() ? "json_invalid" : "value_error"}}));
  }
  json validation = json::object({{"valid", errors.empty()}});
  validation[errors.empty() ? "validated_data" : "errors"] = errors.empty() ? parsed : errors;
  const json message = json::object({{"role", "user"}, {"content", "Hello"}});
  return json::object(
      {{"json_parse_error", parsed.is_discarded() ? errors.front()["message"] : json()},
       {"parsed_body", parsed.is_discarded() ? json() : parsed},
       {"validation_result", validation},
       {"example_valid_request",
        json::object({{"model", "sonnet"}, {"messages", json::array({message})}})}});
}

/// The report of `POST /v1/compatibility`, in the reference wrapper's shape.
inline json render_compatibility(const json& body, const std::vector<std::string>& ignored) {
  const json known = parse_json(known_fields);
  json supported = json::array();
  json unsupported = json::array();
  json warnings = json::array();
  json suggestions = json::array();
  const auto is_known = [&](const std::string& name) {
    return std::find(known.begin(), known.end(), name) != known.end() ||
           std::any_of(ignored_fields.begin(), ignored_fields.end(),
                       [&](const ignored_field& field) { return field.name == name; });
  };
  for (const auto& [name, value] : body.items()) {
    if (value.is_null()) continue;
    if (!is_known(name)) {
      warnings.push_back("'" + name + "' is not a field of chat completions; it is not read");
    } else if (std::count(ignored.begin(), ignored.end(), name) == 0) {
      supported.push_back(name);
    }
  }
  for (const auto& name : ignored) {
    if (body.contains(name) && !is_known(name)) continue;
    unsupported.push_back(name);
    suggestions.push_back("Leave out '" + name + "': it would change nothing here.");
  }
  const json report = json::object({{"supported_parameters", supported},
                                    {"unsupported_parameters", unsupported},
                                    {"warnings", warnings},
                                    {"suggestions", suggestions}});
  const json agent = json::object(
      {{"supported",
        json::array({"model", "system_prompt", "max_turns", "allowed_tools", "disallowed_tools",
                     "permission_mode", "max_thinking_tokens", "cwd"})},
       {"custom_headers",
        json::array({"X-Claude-Max-Turns", "X-Claude-Allowed-Tools", "X-Claude-Disallowed-Tools",
                     "X-Claude-Permission-Mode", "X-Claude-Max-Thinking-Tokens",
                     "X-Claude-Show-Activity", "X-Claude-Cwd"})}});
  return json::object({{"compatibility_report", report}, {"claude_agent_sdk_options", agent}});
}

constexpr dialect_functions dialect{"openai_chat", parse, render_error, http_status};

}  // namespace openai_chat

//================================================================================================
// [11] anthropic_messages - the Messages API: parses requests, writes answers
// uses: text, errors, json_access, conversation, fields, events, sse | pure
//================================================================================================
//
// https://platform.claude.com/docs/en/api/messages
//
// Request   {"model", "max_tokens", "system"?, "messages": [{"role": "user|assistant", "content":
//            "Hi" or [{"type": "text|image|document|tool_use|tool_result|thinking|...", ...}]}],
//            "tools"?: [{"name", "description", "input_schema"}], "tool_choice"?, "thinking"?, ...}
// Answer    {"id": "msg_1", "type": "message", "role": "assistant", "model", "content": [{"type":
//            "text", "text": "Hi"}, {"type": "tool_use", "id", "name", "input": {...}}],
//            "stop_reason": "end_turn|max_tokens|stop_sequence|tool_use|refusal",
//            "stop_sequence", "usage": {"input_tokens", "output_tokens", ...}}
// Stream    event: EVENT, then data: {"type": EVENT, ...} with
//           message_start        {"message": {... as above, without content}}
//           content_block_start  {"index": 0, "content_block": {"type": "text", "text": ""}}
//           content_block_delta  {"index": 0, "delta": {"type": "text_delta", "text": "Hi"}}, or
//                                thinking_, signature_, input_json_ and citations_delta
//           content_block_stop   {"index": 0}
//           message_delta        {"delta": {"stop_reason", "stop_sequence"}, "usage": {...}}
//           message_stop         {}
//           error                as below, and nothing after it
// Error     {"type": "error", "error": {"type", "message"}, "request_id"}

namespace anthropic_messages {

/// The API's own statuses; 529 is known to its SDKs.
inline int status(error_kind kind) {
  return kind == error_kind::overloaded ? 529 : http_status(kind);
}

/// `{"type":"error","error":{type,message,details?},"request_id"}`
inline std::string render_error(const api_error& error, const std::string& request_id) {
  json body =
      json::object({{"type", names_of(error.kind).anthropic_type}, {"message", error.message}});
  if (text::starts_with(error.code, "thread_"))
    body["details"] = json::object({{"error_code", error.code}});
  return dump(json::object({{"type", "error"}, {"error", body}, {"request_id", request_id}}));
}

inline const char* stop_name(stop_reason reason) {
  switch (reason) {
    case stop_reason::end_turn: return "end_turn";
    case stop_reason::turn_limit:
    case stop_reason::max_tokens: return "max_tokens";
    case stop_reason::stop_sequence: return "stop_sequence";
    case stop_reason::tool_use: return "tool_use";
    case stop_reason::refusal: return "refusal";
  }
  return "end_turn";
}

inline json render_usage(const token_usage& usage) {
  json rendered = json::object({{"service_tier", "standard"}});
  rendered.update(usage.api);
  rendered.update(json::object(
      {{"input_tokens", usage.input},
       {"cache_creation_input_tokens", usage.cache_write},
       {"cache_read_input_tokens", usage.cache_read},
       {"cache_creation", json::object({{"ephemeral_5m_input_tokens", usage.cache_write_5m},
                                        {"ephemeral_1h_input_tokens", usage.cache_write_1h}})},
       {"output_tokens", usage.output},
       {"output_tokens_details", json::object({{"thinking_tokens", usage.thinking}})}}));
  if (usage.cost_usd) rendered["cost"] = *usage.cost_usd;
  return rendered;
}

/// The agent's activity is sent as thinking without a signature, what the API's own tools have
/// found as it came.
inline json render_block(const turn_result::block& block) {
  switch (block.kind) {
    case block_kind::text: {
      json text = json::object({{"type", "text"}, {"text", block.text}});
      if (!block.citations.empty()) text["citations"] = block.citations;
      return text;
    }
    case block_kind::thinking:
    case block_kind::activity:
      return json::object(
          {{"type", "thinking"}, {"thinking", block.text}, {"signature", block.signature}});
    case block_kind::redacted_thinking:
      return json::object({{"type", "redacted_thinking"}, {"data", block.text}});
    case block_kind::found: return try_parse_json(block.text, max_line_depth);
    case block_kind::search:
    case block_kind::tool_call: break;
  }
  const json input = try_parse_json(block.text);
  const bool own = block.kind == block_kind::search;
  return json::object({{"type", own ? "server_tool_use" : "tool_use"},
                       {"id", block.id},
                       {"name", block.name},
                       {"input", input.is_object() ? input : json::object()}});
}

/// Writes a `message`, or its events.
class messages_reply final : public reply {
 public:
  explicit messages_reply(const reply_context& context)
      : id_("msg_" + context.id), request_id_(context.request_id) {}

  void write(std::size_t, const event& what, std::string& out) override {
    std::visit(overloaded{
                   [&](const turn_started& e) {
                     json message = head(e.model, json::array(), render_usage(e.usage));
                     write_event("message_start", "message", message, out);
                   },
                   [&](const block_started& e) { write_block(e, out); },
                   [&](const block_delta& e) { write_delta(e, out); },
                   [&](const block_stopped& e) { write_block_end(e, out); },
                   [](const attempt_broken&) {},  // of answers that are not streamed
                   [&](const turn_stopped& e) { write_stop(e, out); },
                   [&](const turn_failed& e) {
                     out += "event: error\n" + sse_data(render_error(e.error, request_id_));
                   },
               },
               what);
  }

  void write_keep_alive(std::string& out) override {
    out += "event: ping\n" + sse_data(R"({"type":"ping"})");
  }

  std::string render(const std::vector<turn_result>& results) const override {
    const auto& result = results.front();
    json content = json::array();
    for (const auto& block : result.blocks) content.push_back(render_block(block));
    json message = head(result.model, content, render_usage(result.usage));
    message["stop_reason"] = stop_name(result.reason);
    message["stop_sequence"] = sequence(result.reason, result.stop_sequence);
    message.update(result.api);
    return dump(message);
  }

 private:
  json head(const std::string& model, json content, json usage) const {
    return json::object({{"id", id_},
                         {"type", "message"},
                         {"role", "assistant"},
                         {"model", model},
                         {"content", std::move(content)},
                         {"stop_reason", json()},
                         {"stop_sequence", json()},
                         {"usage", std::move(usage)}});
  }

  static json sequence(stop_reason reason, const std::string& words) {
    return reason == stop_reason::stop_sequence ? json(words) : json();
  }

  static void write_event(const char* type, const char* name, const json& value, std::string& out) {
    out += std::string("event: ") + type + "\n" +
           sse_data(dump(json::object({{"type", type}, {name, value}})));
  }

  static void write_indexed(const char* type, std::size_t index, const char* name,
                            const json& value, std::string& out) {
    json data = json::object({{"type", type}, {"index", index}});
    if (name != nullptr) data[name] = value;
    out += std::string("event: ") + type + "\n" + sse_data(dump(data));
  }

  /// A redacted thought and a result come whole, so their start waits for their only delta.
  void write_block(const block_started& started, std::string& out) {
    kind_ = started.kind;
    begun_ = kind_ != block_kind::redacted_thinking && kind_ != block_kind::found;
    if (!begun_) return;
    const turn_result::block empty{kind_, {}, started.id, started.name, {}};
    write_indexed("content_block_start", started.index, "content_block", render_block(empty), out);
  }

  void write_delta(const block_delta& delta, std::string& out) {
    json rendered;
    switch (kind_) {
      case block_kind::text:
        rendered = json::object({{"type", "text_delta"}, {"text", delta.text}});
        break;
      case block_kind::thinking:
      case block_kind::activity:
        rendered = json::object({{"type", "thinking_delta"}, {"thinking", delta.text}});
        break;
      case block_kind::search:
      case block_kind::tool_call:
        rendered = json::object({{"type", "input_json_delta"}, {"partial_json", delta.text}});
        break;
      case block_kind::found:
      case block_kind::redacted_thinking:
        begun_ = true;
        return write_indexed("content_block_start", delta.index, "content_block",
                             render_block({kind_, delta.text, {}, {}, {}}), out);
    }
    write_indexed("content_block_delta", delta.index, "delta", rendered, out);
  }

  void write_block_end(const block_stopped& stopped, std::string& out) {
    if (!begun_) write_delta({stopped.index, {}}, out);  // nothing was sealed in it
    for (const auto& citation : stopped.citations) {
      write_indexed("content_block_delta", stopped.index, "delta",
                    json::object({{"type", "citations_delta"}, {"citation", citation}}), out);
    }
    if (kind_ == block_kind::thinking && !stopped.signature.empty()) {
      write_indexed("content_block_delta", stopped.index, "delta",
                    json::object({{"type", "signature_delta"}, {"signature", stopped.signature}}),
                    out);
    }
    write_indexed("content_block_stop", stopped.index, nullptr, {}, out);
  }

  static void write_stop(const turn_stopped& stopped, std::string& out) {
    json delta = json::object({{"stop_reason", stop_name(stopped.reason)},
                               {"stop_sequence", sequence(stopped.reason, stopped.stop_sequence)}});
    delta.update(stopped.api);
    out += "event: message_delta\n" +
           sse_data(dump(json::object({{"type", "message_delta"},
                                       {"delta", delta},
                                       {"usage", render_usage(stopped.usage)}})));
    out += "event: message_stop\n" + sse_data(R"({"type":"message_stop"})");
  }

  std::string id_;
  std::string request_id_;
  block_kind kind_ = block_kind::text;
  bool begun_ = false;  ///< the client knows of the block
};

inline media_part parse_source(const reader& block, media_part::media_kind kind);

/// The texts and images of which a document or a search result is made.
inline json parse_pieces(const reader& content) {
  if (content.is_string()) return content.string();
  json pieces = json::array();
  for (const auto& piece : content.elements()) {
    const auto type = piece.require("type");
    if (type.string() == "image") {
      pieces.push_back(render_media(parse_source(piece, media_part::media_kind::image)));
    } else if (type.string() == "text") {
      pieces.push_back(json::object({{"type", "text"}, {"text", piece.require("text").string()}}));
    } else {
      type.fail("'" + type.string() + "' is not supported here; text and image are");
    }
  }
  return pieces;
}

inline void parse_citations(const reader& block, media_part& media) {
  const auto citations = block.find("citations");
  const auto enabled = citations ? citations->find("enabled") : std::nullopt;
  if (enabled && enabled->boolean()) media.more["citations"] = json::object({{"enabled", true}});
}

inline media_part parse_search_result(const reader& block) {
  media_part media;
  media.kind = media_part::media_kind::document;
  media.more = json::object({{"type", "search_result"},
                             {"source", block.require("source").string()},
                             {"title", block.require("title").string()},
                             {"content", parse_pieces(block.require("content"))}});
  parse_citations(block, media);
  return media;
}

/// `{"type":"base64"|"url"|"text"|"content"|"file", …}` of an image or a document.
inline media_part parse_source(const reader& block, media_part::media_kind kind) {
  const auto source = block.require("source");
  const auto type = source.require("type");
  media_part media;
  if (type.string() == "base64") {
    const auto data = source.require("data");
    media.media_type = source.require("media_type").string();
    media.data = data.string();
    check_media(data, media);
    const bool image = text::starts_with(media.media_type, "image/");
    if (image != (kind == media_part::media_kind::image)) {
      data.fail(image ? "is an image; documents are PDF" : "is not an image");
    }
  } else if (type.string() == "url") {
    media.url = parse_address(source.require("url"));
  } else if (type.string() == "text" && kind == media_part::media_kind::document) {
    media.media_type = "text/plain";
    media.data = source.require("data").string();
  } else if (type.string() == "content" && kind == media_part::media_kind::document) {
    media.more["source"] =
        json::object({{"type", "content"}, {"content", parse_pieces(source.require("content"))}});
  } else {
    type.fail("'" + type.string() + "' is not supported here; base64, url, text and content are");
  }
  media.kind = kind;
  if (const auto title = block.find("title")) media.title = title->string();
  if (kind == media_part::media_kind::image) return media;
  if (const auto context = block.find("context")) media.more["context"] = context->string();
  parse_citations(block, media);
  return media;
}

inline tool_result_part parse_result(const reader& block) {
  tool_result_part result{block.require("tool_use_id").string(), {}, false};
  if (const auto failed = block.find("is_error")) result.is_error = failed->boolean();
  const auto content = block.find("content");
  if (!content) return result;
  const auto add = [&](const std::string& words) {  // the API refuses an empty one
    if (!words.empty()) result.content.emplace_back(text_part{words});
  };
  if (content->is_string()) {
    add(content->string());
    return result;
  }
  for (const auto& piece : content->elements()) {
    const auto type = piece.require("type");
    if (type.string() == "text") {
      add(piece.require("text").string());
    } else if (type.string() == "image") {
      result.content.emplace_back(parse_source(piece, media_part::media_kind::image));
    } else if (type.string() == "document") {
      result.content.emplace_back(parse_source(piece, media_part::media_kind::document));
    } else if (type.string() == "search_result") {
      result.content.emplace_back(parse_search_result(piece));
    } else if (type.string() == "tool_reference") {  // the CLI would take it out
      add("The tool '" + piece.require("tool_name").string() + "' is available.");
    } else {
      type.fail("'" + type.string() + "' is not supported in a tool result");
    }
  }
  return result;
}

/// A thought without a signature is none that the API would take back.
inline void add_thinking(const reader& block, message& entry, turn_request& request) {
  thinking_part thought;
  if (const auto words = block.find("thinking")) thought.text = words->string();
  if (const auto signature = block.find("signature")) thought.signature = signature->string();
  if (const auto data = block.find("data")) thought.redacted = data->string();
  if (thought.signature.empty() && thought.redacted.empty()) {
    return name_ignored_kind(request, "messages", "thinking");
  }
  entry.parts.emplace_back(std::move(thought));
}

inline void parse_block(const reader& block, message& entry, turn_request& request) {
  const auto type = block.require("type");
  const auto& kind = type.string();
  const bool user = entry.author == role::user;
  if (kind == "text") {
    auto words = block.require("text").string();
    if (words.empty()) return;
    entry.parts.emplace_back(text_part{std::move(words)});
  } else if (kind == "image" && user) {
    entry.parts.emplace_back(parse_source(block, media_part::media_kind::image));
  } else if (kind == "document" && user) {
    entry.parts.emplace_back(parse_source(block, media_part::media_kind::document));
  } else if (kind == "search_result" && user) {
    entry.parts.emplace_back(parse_search_result(block));
  } else if (kind == "tool_result" && user) {
    auto result = parse_result(block);
    name_lost_media(result, request);
    entry.parts.emplace_back(std::move(result));
  } else if (kind == "tool_use" && !user) {
    entry.parts.emplace_back(tool_call_part{block.require("id").string(),
                                            block.require("name").string(),
                                            parse_call_input(block.find("input"))});
  } else if ((kind == "thinking" || kind == "redacted_thinking") && !user) {
    add_thinking(block, entry, request);
  } else {
    refuse_part(type, user ? "text, image, document, search_result and tool_result"
                           : "text, tool_use and thinking");
  }
}

/// The assistant's are of an API that makes images; ours takes none back.
inline bool is_made_media(role author, std::string_view kind) {
  return author == role::assistant && (kind == "image" || kind == "document");
}

/// What the API knows and takes from no client but its own: tools that it ran itself, whose results
/// stand in the assistant's message, and blocks that nobody here knows. Where the model has such
/// tools again, the API gets its blocks back as they are.
class server_blocks {
 public:
  server_blocks(history_builder& history, turn_request& request)
      : history_(history), request_(request) {}

  /// True if the block is one of them. What the message holds so far comes before it.
  bool take(const reader& block, message& entry) {
    const auto kind = block.require("type").string();
    const auto& value = block.value();
    const bool is_own = kind == "text" || text::ends_with(kind, "thinking") ||
                        (kind == "search_result" && entry.author == role::user);
    if (kind == "server_tool_use" || kind == "mcp_tool_use") {
      open_[string_of(value, "id")] = value;
    } else if (text::ends_with(kind, "_tool_result")) {
      const auto call = open_.extract(string_of(value, "tool_use_id"));
      finish_call(
          call ? call.mapped() : json::object({{"name", kind.substr(0, kind.rfind("_tool"))}}),
          value, entry);
    } else if (kind == "text" && takes_back(entry) && !member_of(value, "citations").empty()) {
      keep(value, entry);
    } else if ((endpoint_of_part(kind).empty() && !is_own) || is_made_media(entry.author, kind)) {
      history_.add_note(kind, readable(value));
      name_ignored_kind(request_, "messages", kind);
    } else {
      return false;
    }
    return true;
  }

  /// Adds the message. Calls whose results never came (`pause_turn`) end without one.
  void finish(message entry) {
    for (auto& [id, call] : std::exchange(open_, {})) finish_call(call, {}, entry);
    history_.add(std::move(entry));
  }

 private:
  /// The API gets back what is its own.
  bool takes_back(const message& entry) const {
    return !request_.web.empty() && entry.author == role::assistant;
  }

  static void keep(json block, message& entry) {
    block.erase("cache_control");
    entry.parts.emplace_back(api_block_part{std::move(block)});
  }

  void finish_call(const json& call, const json& result_block, message& entry) {
    if (takes_back(entry) && string_of(call, "type") == "server_tool_use" &&
        !result_block.is_null()) {
      keep(call, entry);
      return keep(result_block, entry);
    }
    const auto& input = member_of(call, "input");
    const auto& content = member_of(result_block, "content");
    tool_result_part result;
    if (!content.is_null()) result.content.emplace_back(text_part{dump(readable(content))});
    result.is_error =
        boolean_of(result_block, "is_error") || !string_of(content, "error_code").empty();
    history_.add(std::exchange(entry, {entry.author, {}}));
    history_.add_finished_call(string_of(call, "name"), input.is_object() ? input : json::object(),
                               std::move(result));
  }

  history_builder& history_;
  turn_request& request_;
  std::map<std::string, json> open_;  ///< calls by id, until their results come
};

inline void parse_message(const reader& source, history_builder& history, turn_request& request,
                          bool is_latest) {
  const auto speaker = source.require("role");
  message entry;
  server_blocks foreign(history, request);
  if (speaker.string() == "assistant") {
    entry.author = role::assistant;
  } else if (speaker.string() == "system") {  // newer clients put reminders there
    name_members(source, "messages", {"clear_at", "output_config"}, request, R"(["never"])");
    return take_instructions(source.require("content"), request);
  } else if (speaker.string() == "tool" || speaker.string() == "developer") {
    speaker.fail("must be user or assistant; send this body to /v1/chat/completions");
  } else if (speaker.string() != "user") {
    speaker.fail("must be user or assistant");
  }
  const auto content = source.require("content");
  if (content.is_string()) {
    if (!content.string().empty()) entry.parts.emplace_back(text_part{content.string()});
  } else {
    for (const auto& block : content.elements()) {
      const bool keeps = !request.web.empty() && entry.author == role::assistant;
      const auto* neutral = R"([{"type":"direct"},[],{"enabled":true},{"enabled":false}])";
      name_members(block, "messages", {"transformations", "toolset_name", "caller"}, request,
                   neutral);
      if (!keeps) name_members(block, "messages", {"citations"}, request, neutral);
      const auto kind = string_of(block.value(), "type");
      const bool is_asked =
          is_latest && (entry.author == role::user || is_made_media(entry.author, kind));
      if (is_asked || !foreign.take(block, entry)) parse_block(block, entry, request);
    }
  }
  foreign.finish(std::move(entry));
}

/// What else a tool of the API's can have.
inline void parse_tool_members(const reader& source, tool_definition& tool) {
  for (const char* name : {"strict", "eager_input_streaming"}) {
    if (const auto wish = source.find(name)) tool.more[name] = wish->boolean();
  }
  if (const auto examples = source.find("input_examples")) {
    for (const auto& one : examples->elements()) tool.more["input_examples"].push_back(one.value());
  }
}

/// Tools of the client's. Those that only the API can run are refused, but for the web where the
/// client may use it (`web`).
inline void parse_tools(const reader& root, turn_request& request, bool web) {
  const auto tools = root.find("tools");
  if (!tools) return;
  for (const auto& tool : tools->elements()) {
    refuse_foreign_tool(tool);
    const auto kind = string_of(tool.value(), "type");
    if (web &&
        (text::starts_with(kind, "web_search_2") || text::starts_with(kind, "web_fetch_2"))) {
      tool.require("name").string();
      add_web_tool(tool, tool.value(), request);
      continue;
    }
    if (const auto type = tool.find("type")) {
      if (type->string() != "custom") {
        type->fail("'" + type->string() + "' is a tool of the API's own, which is not supported");
      }
    }
    tool_definition fresh{tool.require("name").string(), {}, {}};
    if (const auto description = tool.find("description"))
      fresh.description = description->string();
    fresh.schema = parse_object_schema(tool.require("input_schema"));
    parse_tool_members(tool, fresh);
    add_tool(tool, std::move(fresh), request);
  }
}

inline void parse_tool_choice(const reader& choice, turn_request& request) {
  auto& wanted = request.choice;
  const auto type = choice.require("type");
  if (type.string() == "none") {
    wanted.kind = tool_choice::how::none;
  } else if (type.string() == "any") {
    wanted.kind = tool_choice::how::any;
  } else if (type.string() == "tool") {
    wanted.kind = tool_choice::how::named;
    wanted.name = choice.require("name").string();
  } else if (type.string() != "auto") {
    type.fail("must be auto, any, tool or none");
  }
  check_tool_choice(choice, request);
  if (const auto single = choice.find("disable_parallel_tool_use")) {
    wanted.parallel = !single->boolean();
  }
}

/// `thinking`, `effort` and the format of the answer.
inline void parse_output(const reader& root, turn_request& request) {
  request.thinking_field = "thinking";
  request.effort_field = "output_config.effort";
  request.stop_field = "stop_sequences";
  request.thinking_tokens = 0;  // here an effort alone does not make the model think
  const auto output = root.find("output_config");
  if (output) {
    const auto effort = output->find("effort");
    if (effort) request.effort = parse_reasoning_effort(*effort);
    name_members(*output, "output_config", {"task_budget"}, request);
  }
  if (const auto thinking = root.find("thinking")) {
    const auto type = thinking->require("type");
    if (type.string() == "enabled") {
      request.thinking_tokens = thinking->require("budget_tokens").integer(1024, 1'000'000);
      request.budget_field = "thinking.budget_tokens";
    } else if (type.string() == "adaptive") {
      const bool thinks = request.effort != reasoning_effort::none;
      request.thinking_tokens = thinking_budget(thinks ? request.effort : reasoning_effort::high);
    } else if (type.string() == "disabled") {
      request.no_thinking = true;
    } else {
      type.fail("must be enabled, adaptive or disabled");
    }
    name_members(*thinking, "thinking", {"display", "block_binding"}, request, R"(["summarized"])");
  }
  auto format = output ? output->find("format") : std::nullopt;
  if (!format) format = root.find("output_format");
  if (!format) return;
  const auto type = format->require("type");
  if (type.string() != "json_schema") type.fail("must be json_schema");
  take_answer_schema(format->require("schema"), request);
}

inline void parse_sampling(const reader& root, turn_request& request) {
  auto& sampling = request.sampling;
  sampling.max_tokens = root.require("max_tokens").integer(1, 1'000'000'000);
  if (const auto value = root.find("temperature")) sampling.temperature = value->number(0, 1);
  if (const auto value = root.find("top_p")) sampling.top_p = value->number(0, 1);
  if (const auto value = root.find("top_k")) sampling.top_k = value->integer(0, 1'000'000);
  if (const auto stops = root.find("stop_sequences")) {
    for (const auto& stop : stops->elements()) sampling.stop.push_back(stop.string());
  }
}

/// The system prompt. Claude Code, as a client, begins with a billing tag of its own; passed on,
/// the CLI would take the whole prompt for its tag, and neither tag nor cache it.
inline void parse_system(const reader& system, turn_request& request) {
  constexpr std::string_view tag = "x-anthropic-billing-header:";
  if (!system.value().is_array()) return append_instructions(system, request);
  json kept = json::array();
  for (const auto& block : system.value()) {
    if (!text::starts_with(string_of(block, "text"), tag)) kept.push_back(block);
  }
  append_instructions(reader(kept, system.path()), request);
}

/// Messages request to neutral request; also that of `count_tokens`, which needs no `max_tokens`.
/// The CLI sets cache marks of its own. They get the longest lifetime that a mark of the client
/// has, which is named where others are shorter.
inline void parse_cache_ttl(const json& body, turn_request& turn) {
  std::set<std::string> lifetimes;
  const auto note = [&](const json& holder) {
    const auto& mark = member_of(holder, "cache_control");
    const auto ttl = string_of(mark, "ttl");
    if (!ttl.empty() && ttl != "5m" && ttl != "1h") {
      throw bad_field("cache_control.ttl", "must be '5m' or '1h'");
    }
    if (mark.is_object()) lifetimes.insert(ttl.empty() ? "5m" : ttl);
    if (ttl == "1h" || (ttl == "5m" && turn.cache_ttl.empty())) turn.cache_ttl = ttl;
  };
  note(body);
  for (const char* list : {"system", "tools"}) {
    for (const auto& one : member_of(body, list)) note(one);
  }
  for (const auto& message : member_of(body, "messages")) {
    for (const auto& block : member_of(message, "content")) note(block);
  }
  turn.cache_field = "cache_control.ttl";
  if (!turn.cache_ttl.empty() && lifetimes.size() > 1) name_ignored(turn, turn.cache_field);
}

inline turn_request parse_request(const json& body, bool counts_only, bool web = false) {
  const body_reader root(body);
  turn_request turn;
  refuse_foreign_body(root, "messages");
  parse_tools(root, turn, web);
  const auto messages = root.require("messages");
  const auto all = messages.elements();
  if (all.empty()) messages.fail("must hold at least one message");
  if (const auto system = root.find("system")) parse_system(*system, turn);
  history_builder history(turn.messages);
  for (const auto& one : all) parse_message(one, history, turn, &one == &all.back());
  history.finish();
  const auto& last = all.back();
  if (last.require("role").string() == "user" && turn.messages.back().parts.empty()) {
    last.require("content").fail("must not be empty in the last message");
  }
  normalize(turn.messages);
  if (const auto choice = root.find("tool_choice")) parse_tool_choice(*choice, turn);
  if (!counts_only) parse_sampling(root, turn);
  parse_output(root, turn);
  turn.model = parse_model(root.require("model"));
  parse_session(root, turn);
  if (const auto stream = root.find("stream")) turn.stream = stream->boolean();
  parse_cache_ttl(body, turn);
  parse_agent(root, turn);
  if (root.find("thread")) {  // by this code the SDKs' tool runners send all again without it
    auto error = bad_field("thread", "is not supported: send the whole conversation without it");
    error.code = "thread_unsupported_request";
    throw error;
  }
  if (!counts_only) root.name_unread(turn);
  return turn;
}

inline parsed_request parse(const json& body, const reply_context& context) {
  parsed_request parsed;
  parsed.turns.push_back(parse_request(body, false, context.web));
  parsed.reply = std::make_unique<messages_reply>(context);
  return parsed;
}

constexpr dialect_functions dialect{"anthropic_messages", parse, render_error, status};

/// What of a request takes tokens, as a body of the Messages API; without tools.
inline json make_body(const turn_request& request) {
  json messages = json::array();
  for (const auto& entry : request.messages) {
    json content = json::array();
    for (const auto& part : entry.parts) content.push_back(render_part(part));
    const char* speaker = entry.author == role::user ? "user" : "assistant";
    messages.push_back(json::object({{"role", speaker}, {"content", content}}));
  }
  json body = json::object({{"model", request.model}, {"messages", messages}});
  if (!request.system.empty()) body["system"] = request.system;
  return body;
}

/// The body of a `count_tokens` request to the API: the client's own, without what the API does not
/// take there, and with the tools that a history needs.
inline json make_count_request(const json& body, const turn_request& request) {
  json asked = json::object();
  for (const char* name : {"model", "messages", "system", "tools", "tool_choice", "thinking",
                           "output_config", "cache_control"}) {
    if (!member_of(body, name).is_null()) asked[name] = member_of(body, name);
  }
  if (!member_of(asked, "tools").is_null()) return asked;
  json tools = json::array();
  for (const auto& tool : request.tools) {
    tools.push_back(json::object(
        {{"name", tool.name}, {"description", tool.description}, {"input_schema", tool.schema}}));
  }
  if (!tools.empty()) asked["tools"] = tools;
  return asked;
}

/// Tokens of a picture or document, guessed: an image has about 1,600, a page of a PDF as many.
inline std::int64_t estimate_tokens(const media_part& media) {
  constexpr std::int64_t of_image = 1'600;
  constexpr std::int64_t of_unseen_document = 25'000;
  constexpr std::int64_t bytes_of_pdf_token = 16;
  const auto size = static_cast<std::int64_t>(media.data.size());
  if (media.kind == media_part::media_kind::image) return of_image;
  if (!media.url.empty()) return of_unseen_document;
  if (media.media_type == "text/plain") return size / 4;
  return std::max(of_image, size / bytes_of_pdf_token);
}

/// Tokens of messages, guessed from their size: four bytes of text make one.
inline std::int64_t estimate_tokens(const std::vector<message>& messages) {
  std::size_t bytes = 0;
  std::int64_t tokens = 0;
  const auto weigh_media = [&](const media_part& media) {
    tokens += estimate_tokens(media);
    if (!media.more.empty()) bytes += dump(media.more).size();
  };
  const auto weigh = overloaded{
      [&](const text_part& part) { bytes += part.text.size(); },
      [&](const media_part& part) { weigh_media(part); },
      [&](const thinking_part& part) { bytes += part.text.size(); },
      [&](const tool_call_part& part) { bytes += part.name.size() + dump(part.input).size(); },
      [&](const tool_result_part& part) {
        for (const auto& piece : part.content) {
          if (const auto* plain = std::get_if<text_part>(&piece)) bytes += plain->text.size();
          if (const auto* media = std::get_if<media_part>(&piece)) weigh_media(*media);
        }
      },
      [&](const api_block_part& part) { bytes += dump(part.block).size(); },
  };
  for (const auto& entry : messages) {
    tokens += 4;
    for (const auto& part : entry.parts) std::visit(weigh, part);
  }
  return tokens + static_cast<std::int64_t>(bytes / 4) + 1;
}

/// The same of a request with its system prompt and tools.
inline std::int64_t estimate_tokens(const turn_request& request) {
  std::size_t bytes = request.system.size();
  for (const auto& tool : request.tools) {
    bytes += tool.name.size() + tool.description.size() + dump(tool.schema).size();
  }
  return estimate_tokens(request.messages) + static_cast<std::int64_t>(bytes / 4);
}

}  // namespace anthropic_messages

//================================================================================================
// [12] openai_responses - the Responses API: parses requests, writes answers
// uses: text, errors, json_access, conversation, fields, events, sse, openai_chat | pure
//================================================================================================
//
// https://platform.openai.com/docs/api-reference/responses
//
// Request   {"model", "input": "Hi" or [ITEM], "instructions"?, "previous_response_id"?, "tools"?:
//            [{"type": "function", "name", "parameters"}], "text"?: {"format"}, "reasoning"?, ...}
// ITEM      {"type": "message", "role", "content": [{"type": "input_text|output_text", "text"}]},
//           {"type": "function_call", "call_id", "name", "arguments": "{...}"},
//           {"type": "function_call_output", "call_id", "output"},
//           {"type": "reasoning", "summary": [...], "encrypted_content"?}, ...
// Answer    {"id": "resp_1", "object": "response", "status": "completed|incomplete|failed",
//            "model", "output": [ITEM], "usage": {"input_tokens", "output_tokens", ...}, ...}
// Stream    event: EVENT, then data: {"type": EVENT, "sequence_number": 0, ...} with
//           response.created, response.in_progress                   {"response"}
//           response.output_item.added, .done                        {"output_index", "item"}
//           response.content_part.added, .done                       {"item_id", "part", ...}
//           response.output_text.delta, .done                        {"delta"} or {"text"}
//           response.function_call_arguments.delta, .done            {"delta"} or {"arguments"}
//           response.reasoning_summary_text.delta, .done             {"delta"} or {"text"}
//           response.completed, response.incomplete, response.failed {"response"}
// Error     as of chat completions; in a stream response.failed, or an event `error` before any

namespace openai_responses {

inline json render_usage(const token_usage& usage) {
  json rendered = json::object(
      {{"input_tokens", usage.prompt()},
       {"input_tokens_details", json::object({{"cached_tokens", usage.cache_read},
                                              {"cache_write_tokens", usage.cache_write}})},
       {"output_tokens", usage.output},
       {"output_tokens_details", json::object({{"reasoning_tokens", usage.thinking}})},
       {"total_tokens", usage.prompt() + usage.output}});
  if (usage.cost_usd) rendered["cost"] = *usage.cost_usd;
  return rendered;
}

/// A signed thought as the text that clients keep for us in a reasoning item.
inline std::string seal(const thinking_part& thought) {
  return text::to_base64(dump(json::object({{"thinking", thought.text},
                                            {"signature", thought.signature},
                                            {"redacted", thought.redacted}})));
}

/// A tool of a namespace, as clients (Codex, for MCP servers and its own agents) name it.
struct qualified_name {
  std::string space;
  std::string name;

  std::string joined() const { return space + "." + name; }
};

/// What of the request its answer repeats, and how its items are to be written.
struct response_style {
  json echo = json::object();         ///< members of the response object that are the request's
  bool summarizes = false;            ///< thoughts are shown as a summary
  bool seals = false;                 ///< and given along for the client to bring back
  std::vector<std::string> freeform;  ///< names of custom tools, whose input is plain text
  std::map<std::string, qualified_name> spaced;  ///< tools of a namespace, by our name of them
  bool may_search = false;                       ///< the web, see `reply_context`
  bool joins_texts = false;  ///< a text that cites pages comes in pieces, which are one item
};

/// What the response object repeats of the request, with OpenAI's defaults.
inline json make_echo(const json& body) {
  json echo = json::object();
  const auto repeat = [&](const char* name, json fallback) {
    const auto& given = member_of(body, name);
    echo[name] = given.is_null() ? std::move(fallback) : given;
  };
  repeat("instructions", json());
  repeat("max_output_tokens", json());
  repeat("max_tool_calls", json());
  repeat("metadata", json::object());
  repeat("parallel_tool_calls", true);
  repeat("previous_response_id", json());
  repeat("reasoning", json::object({{"effort", json()}, {"summary", json()}}));
  repeat("service_tier", "default");
  repeat("store", true);
  repeat("temperature", 1.0);
  repeat("text", json::object({{"format", json::object({{"type", "text"}})}}));
  repeat("tool_choice", "auto");
  repeat("tools", json::array());
  repeat("top_p", 1.0);
  repeat("truncation", "disabled");
  repeat("user", json());
  return echo;
}

inline json make_response(const reply_context& context, const std::string& model,
                          const char* status, json output, const json& echo) {
  json whole = json::object({{"id", "resp_" + context.id},
                             {"object", "response"},
                             {"created_at", context.created},
                             {"status", status},
                             {"background", false},
                             {"error", json()},
                             {"incomplete_details", json()},
                             {"model", model},
                             {"output", std::move(output)}});
  whole.update(echo);
  whole["usage"] = json();
  return whole;
}

/// A response of which nothing is known but what was asked.
inline json make_begun_response(const reply_context& context, const json& body) {
  return make_response(context, string_of(body, "model"), "in_progress", json::array(),
                       make_echo(body));
}

/// Makes the response one that has failed, or that its client has cancelled.
inline void set_failure(json& response, const api_error& error) {
  const json body = parse_json(openai_chat::render_error(error))["error"];
  response["status"] = error.code == "cancelled" ? "cancelled" : "failed";
  const auto& code = body["code"];
  response["error"] =
      json::object({{"code", code.is_null() ? body["type"] : code}, {"message", error.message}});
}

/// Builds the response object, and the events that tell it. Each block is an item of its own, but
/// for pieces of a text (`joins_texts`) and for what a search has found, which is part of its call.
/// Of a block that is written, `citations` are annotations, or the result of a search.
class response_reply final : public reply {
 public:
  response_reply(const reply_context& context, response_style style)
      : context_(context), style_(std::move(style)) {}

  void write(std::size_t, const event& what, std::string& out) override {
    std::visit(overloaded{
                   [&](const turn_started& e) { write_start(e, out); },
                   [&](const block_started& e) { write_block(e, out); },
                   [&](const block_delta& e) { write_delta(e, out); },
                   [&](const block_stopped& e) { end_block(e, out); },
                   [](const attempt_broken&) {},  // of answers that are not streamed
                   [&](const turn_stopped& e) { write_stop(e, out); },
                   [&](const turn_failed& e) { write_failure(e.error, out); },
               },
               what);
  }

  void write_keep_alive(std::string& out) override { out += ": keep-alive\n\n"; }

  std::string render(const std::vector<turn_result>& results) const override {
    const auto& result = results.front();
    response_reply writer(context_, style_);
    std::string unsent;
    for (const auto& block : result.blocks) {
      writer.write_block({0, block.kind, block.id, block.name}, unsent);
      writer.write_delta({0, block.text}, unsent);
      writer.end_block({0, block.signature, block.citations}, unsent);
    }
    writer.write_block_end(result.reason, unsent);
    const json whole = finished(result.model, writer.output_, result.reason, result.usage);
    if (context_.keep) context_.keep(whole);
    return dump(whole);
  }

 private:
  bool is_freeform(const std::string& name) const {
    return std::find(style_.freeform.begin(), style_.freeform.end(), name) != style_.freeform.end();
  }

  std::string item_id(const turn_result::block& block, std::size_t index) const {
    const char* prefix = "rs_";
    if (block.kind == block_kind::text) prefix = "msg_";
    if (block.kind == block_kind::tool_call) prefix = is_freeform(block.name) ? "ctc_" : "fc_";
    if (block.kind == block_kind::search) prefix = "ws_";
    return prefix + context_.id + "_" + std::to_string(index);
  }

  /// True if the answer ends within this block, its last one.
  static bool cuts(stop_reason reason, const turn_result::block& block) {
    const bool cut = reason == stop_reason::max_tokens || reason == stop_reason::refusal;
    const bool call = block.kind == block_kind::tool_call;
    return cut && (call ? !try_parse_json(block.text).is_object() : block.kind == block_kind::text);
  }

  json response(const std::string& model, const char* status, json output) const {
    return make_response(context_, model, status, std::move(output), style_.echo);
  }

  json finished(const std::string& model, const json& output, stop_reason reason,
                const token_usage& usage) const {
    const bool cut = reason == stop_reason::max_tokens || reason == stop_reason::turn_limit;
    const bool filtered = reason == stop_reason::refusal;
    json whole = response(model, cut || filtered ? "incomplete" : "completed", output);
    if (cut) whole["incomplete_details"] = json::object({{"reason", "max_output_tokens"}});
    if (filtered) whole["incomplete_details"] = json::object({{"reason", "content_filter"}});
    whole["usage"] = render_usage(usage);
    return whole;
  }

  static json text_content(const std::string& words, json annotations = json::array()) {
    return json::object({{"type", "output_text"},
                         {"text", words},
                         {"annotations", std::move(annotations)},
                         {"logprobs", json::array()}});
  }

  static json search_item(const turn_result::block& block, const std::string& id) {
    const auto& found = member_of(block.citations, "content");
    const char* status = found.is_array()    ? "completed"
                         : found.is_object() ? "failed"
                                             : "incomplete";
    json sources = json::array();
    for (const auto& page : found) {
      const auto url = string_of(page, "url");
      if (!url.empty()) sources.push_back(json::object({{"type", "url"}, {"url", url}}));
    }
    const auto query = string_of(try_parse_json(block.text), "query");
    return json::object(
        {{"id", id},
         {"type", "web_search_call"},
         {"status", status},
         {"action", json::object({{"type", "search"}, {"query", query}, {"sources", sources}})}});
  }

  json reasoning_item(const turn_result::block& block, const std::string& id) const {
    json summary = json::array();
    const bool shown = style_.summarizes || block.kind == block_kind::activity;
    if (shown && block.kind != block_kind::redacted_thinking && !block.text.empty()) {
      summary.push_back(json::object({{"type", "summary_text"}, {"text", block.text}}));
    }
    json item = json::object({{"id", id}, {"type", "reasoning"}, {"summary", summary}});
    const bool redacted = block.kind == block_kind::redacted_thinking;
    if (style_.seals && (redacted || !block.signature.empty())) {
      item["encrypted_content"] = seal(redacted ? thinking_part{{}, {}, block.text}
                                                : thinking_part{block.text, block.signature, {}});
    }
    return item;
  }

  json finished_item(const turn_result::block& block, const std::string& id) const {
    switch (block.kind) {
      case block_kind::text:
        return json::object(
            {{"id", id},
             {"type", "message"},
             {"status", "completed"},
             {"role", "assistant"},
             {"content", json::array({text_content(block.text, block.citations)})}});
      case block_kind::thinking:
      case block_kind::redacted_thinking:
      case block_kind::activity: return reasoning_item(block, id);
      case block_kind::search: return search_item(block, id);
      case block_kind::found:  // part of its search, see `write_block`
      case block_kind::tool_call: break;
    }
    const bool freeform = is_freeform(block.name);
    json item = json::object({{"id", id},
                              {"type", freeform ? "custom_tool_call" : "function_call"},
                              {"status", "completed"},
                              {"call_id", block.id},
                              {"name", block.name}});
    if (const auto spaced = style_.spaced.find(block.name); spaced != style_.spaced.end()) {
      item["name"] = spaced->second.name;
      item["namespace"] = spaced->second.space;
    }
    item[freeform ? "input" : "arguments"] =
        freeform ? openai_chat::freeform_input(block.text) : block.text;
    return item;
  }

  json empty_item(const turn_result::block& block, const std::string& id) const {
    json item = finished_item(block, id);
    item.erase("encrypted_content");
    if (block.kind == block_kind::text) item["content"] = json::array();
    if (item.contains("status")) item["status"] = "in_progress";
    return item;
  }

  /// Each event bears the type, the members, and its place in the stream.
  void emit(const char* type, json members, std::string& out) {
    json data = json::object({{"type", type}});
    data.update(members);
    data["sequence_number"] = sequence_++;
    out += std::string("event: ") + type + "\n" + sse_data(dump(data));
  }

  void write_start(const turn_started& started, std::string& out) {
    model_ = started.model;
    const json whole = response(model_, "in_progress", json::array());
    emit("response.created", json::object({{"response", whole}}), out);
    emit("response.in_progress", json::object({{"response", whole}}), out);
  }

  json place(bool in_item) const {
    json at = json::object({{"item_id", item_}, {"output_index", output_.size()}});
    if (in_item) at["content_index"] = 0;
    return at;
  }

  static json with(json members, const char* name, json value) {
    members[name] = std::move(value);
    return members;
  }

  json summary_place() const { return with(place(false), "summary_index", 0); }

  bool shows_summary() const {
    return block_.kind == block_kind::activity ||
           (block_.kind == block_kind::thinking && style_.summarizes);
  }

  void write_block(const block_started& started, std::string& out) {
    const bool both = started.kind == block_kind::text && block_.kind == block_kind::text;
    in_result_ = started.kind == block_kind::found;
    piece_begins_ = text::count_characters(block_.text);
    if (in_result_ || (awaits_end_ && both && style_.joins_texts)) return;
    write_block_end(stop_reason::end_turn, out);
    block_ = {started.kind, {}, started.id, started.name, {}};
    item_ = item_id(block_, output_.size());
    piece_begins_ = 0;
    emit("response.output_item.added",
         json::object({{"output_index", output_.size()}, {"item", empty_item(block_, item_)}}),
         out);
    if (block_.kind == block_kind::search) {
      emit("response.web_search_call.in_progress", place(false), out);
      emit("response.web_search_call.searching", place(false), out);
    }
    if (block_.kind == block_kind::text) {
      emit("response.content_part.added", with(place(true), "part", text_content({})), out);
    }
    if (shows_summary()) {
      const json part = json::object({{"type", "summary_text"}, {"text", ""}});
      emit("response.reasoning_summary_part.added", with(summary_place(), "part", part), out);
    }
  }

  void end_block(const block_stopped& stopped, std::string& out) {
    block_.signature = stopped.signature;
    awaits_end_ = true;
    const auto end = text::count_characters(block_.text);
    for (const auto& one : openai_chat::url_citations(stopped.citations, piece_begins_, end)) {
      emit("response.output_text.annotation.added",
           with(with(place(true), "annotation_index", block_.citations.size()), "annotation", one),
           out);
      block_.citations.push_back(one);
    }
  }

  void write_delta(const block_delta& delta, std::string& out) {
    if (in_result_) {
      block_.citations = try_parse_json(delta.text, max_line_depth);
      return;
    }
    block_.text += delta.text;
    if (block_.kind == block_kind::text) {
      emit("response.output_text.delta",
           with(with(place(true), "delta", delta.text), "logprobs", json::array()), out);
    }
    if (shows_summary()) {
      emit("response.reasoning_summary_text.delta", with(summary_place(), "delta", delta.text),
           out);
    }
    if (block_.kind == block_kind::tool_call && !is_freeform(block_.name)) {
      emit("response.function_call_arguments.delta", with(place(false), "delta", delta.text), out);
    }
  }

  /// Waits for the event after the block's end, which tells whether the block is whole.
  void write_block_end(stop_reason reason, std::string& out) {
    if (!std::exchange(awaits_end_, false)) return;
    json item = finished_item(block_, item_);
    const bool cut = cuts(reason, block_);
    if (cut) item["status"] = "incomplete";
    if (block_.kind == block_kind::text) {
      emit("response.output_text.done",
           with(with(place(true), "text", block_.text), "logprobs", json::array()), out);
      emit("response.content_part.done", with(place(true), "part", item["content"][0]), out);
    }
    if (shows_summary()) {
      const json part = json::object({{"type", "summary_text"}, {"text", block_.text}});
      emit("response.reasoning_summary_text.done", with(summary_place(), "text", block_.text), out);
      emit("response.reasoning_summary_part.done", with(summary_place(), "part", part), out);
    }
    if (block_.kind == block_kind::tool_call && !cut) write_call_end(item, out);
    if (block_.kind == block_kind::search && item["status"] == "completed") {
      emit("response.web_search_call.completed", place(false), out);
    }
    emit("response.output_item.done",
         json::object({{"output_index", output_.size()}, {"item", item}}), out);
    output_.push_back(item);
  }

  /// A custom tool's text is known when its JSON is whole.
  void write_call_end(const json& item, std::string& out) {
    if (!is_freeform(block_.name)) {
      return emit("response.function_call_arguments.done",
                  with(with(place(false), "name", item["name"]), "arguments", block_.text), out);
    }
    emit("response.custom_tool_call_input.delta", with(place(false), "delta", item["input"]), out);
    emit("response.custom_tool_call_input.done", with(place(false), "input", item["input"]), out);
  }

  void write_stop(const turn_stopped& stopped, std::string& out) {
    write_block_end(stopped.reason, out);
    const json whole = finished(model_, output_, stopped.reason, stopped.usage);
    const bool complete = whole["status"] == "completed";
    if (context_.keep) context_.keep(whole);
    emit(complete ? "response.completed" : "response.incomplete",
         json::object({{"response", whole}}), out);
  }

  void write_failure(const api_error& error, std::string& out) {
    write_block_end(stop_reason::end_turn, out);
    json whole = response(model_, "failed", output_);
    set_failure(whole, error);
    if (context_.keep) context_.keep(whole);
    emit("response.failed", json::object({{"response", whole}}), out);
  }

  reply_context context_;
  response_style style_;
  std::string model_;
  std::int64_t sequence_ = 0;
  json output_ = json::array();   ///< the finished items
  turn_result::block block_;      ///< the one that is being sent
  std::string item_;              ///< and its id
  bool awaits_end_ = false;       ///< it has ended, and that is not sent yet
  bool in_result_ = false;        ///< what comes in is what its search has found
  std::size_t piece_begins_ = 0;  ///< where the piece of its text that comes in begins
};

/// Items may be parts of a message or whole: text, images and files alike.
inline content_part parse_content_part(const reader& part, turn_request& request, role author,
                                       bool is_latest) {
  const auto type = part.require("type");
  const auto& kind = type.string();
  if (kind == "input_text" || kind == "output_text" || kind == "text" || kind == "summary_text" ||
      kind == "reasoning_text") {
    return text_part{part.require("text").string()};
  }
  if (kind == "refusal") return text_part{part.require("refusal").string()};
  if (author == role::assistant) {  // of an API that makes images; ours takes none back
    name_ignored_kind(request, request.messages_field, kind);
    return text_part{};
  }
  if (kind == "input_image") {
    if (const auto id = part.find("file_id")) {
      id->fail("is not supported: this server keeps no files; send 'image_url'");
    }
    return openai_chat::parse_image(part.require("image_url"), part.find("detail"), request);
  }
  if (kind == "input_file") {
    name_members(part, kind, {"detail"}, request, R"(["auto"])");
    if (const auto url = part.find("file_url")) {
      media_part media;
      media.kind = media_part::media_kind::document;
      media.url = parse_address(*url);
      if (const auto name = part.find("filename")) media.title = name->string();
      return media;
    }
    return openai_chat::parse_file(part);
  }
  return parse_foreign_part(part, request, author == role::user, is_latest,
                            "input_text, input_image and input_file");
}

inline std::vector<content_part> parse_content(const reader& content, turn_request& request,
                                               role author, bool is_latest) {
  std::vector<content_part> parts;
  if (content.is_string()) {
    if (!content.string().empty()) parts.emplace_back(text_part{content.string()});
    return parts;
  }
  for (const auto& part : content.elements()) {
    auto read = parse_content_part(part, request, author, is_latest);
    const auto* words = std::get_if<text_part>(&read);
    if (words == nullptr || !words->text.empty()) parts.push_back(std::move(read));
  }
  return parts;
}

inline void parse_message_item(const reader& item, history_builder& history, turn_request& request,
                               bool is_latest) {
  const auto speaker = item.require("role");
  const auto content = item.require("content");
  name_members(item, "input", {"phase"}, request, R"(["final_answer"])");
  if (speaker.string() == "system" || speaker.string() == "developer") {
    return take_instructions(content, request);
  }
  if (speaker.string() != "user" && speaker.string() != "assistant") {
    speaker.fail("must be user, assistant, system or developer");
  }
  const auto author = speaker.string() == "user" ? role::user : role::assistant;
  history.add({author, parse_content(content, request, author, is_latest)});
}

inline void parse_call_item(const reader& item, bool freeform, history_builder& history) {
  tool_call_part call{item.require("call_id").string(), item.require("name").string(), {}};
  if (freeform) {
    call.input = json::object({{"input", item.require("input").string()}});
  } else {
    call = openai_chat::parse_function_call(item, call.id);
  }
  if (const auto space = item.find("namespace")) {
    call.name = qualified_name{space->string(), call.name}.joined();
  }
  history.add({role::assistant, {std::move(call)}});
}

inline void parse_output_item(const reader& item, history_builder& history, turn_request& request,
                              bool is_latest) {
  auto output = parse_content(item.require("output"), request, role::user, is_latest);
  history.add({role::user, {make_result(item.require("call_id").string(), std::move(output))}});
}

/// A thought that we sealed comes back as it was; of any other only the API that made it could make
/// sense.
inline void parse_reasoning_item(const reader& item, history_builder& history,
                                 turn_request& request) {
  const auto sealed = item.find("encrypted_content");
  if (!sealed) return name_members(item, "input.reasoning", {"content"}, request, "[[]]");
  const auto& words = sealed->string();
  const json opened = try_parse_json(text::is_base64(words) ? text::from_base64(words) : "");
  thinking_part thought{string_of(opened, "thinking"), string_of(opened, "signature"),
                        string_of(opened, "redacted")};
  if (thought.signature.empty() && thought.redacted.empty()) {
    return name_ignored_kind(request, "input", "reasoning");
  }
  history.add({role::assistant, {std::move(thought)}});
}

/// Takes a tool in any endpoint's form. One that only OpenAI can run is left out and named, but for
/// the search of the web where the client may use it.
inline void parse_tool(const reader& tool, const qualified_name& in, turn_request& request,
                       response_style& style) {
  const auto kind = tool.find("input_schema") ? "function" : tool.require("type").string();
  if (style.may_search && in.space.empty() && text::starts_with(kind, "web_search")) {
    style.joins_texts = true;
    return add_web_search(tool, "tools.web_search", request);
  }
  const bool freeform = kind == "custom";
  if (!freeform && kind != "function") return name_ignored_kind(request, "tools", kind);
  const auto own = openai_chat::definition_of(tool);
  auto fresh = freeform ? openai_chat::parse_custom_tool(own) : openai_chat::parse_function(own);
  if (!in.space.empty()) {
    const qualified_name full{in.space, fresh.name};
    fresh.name = full.joined();
    style.spaced[fresh.name] = full;
  }
  if (freeform) style.freeform.push_back(fresh.name);
  add_tool(own, std::move(fresh), request);
}

inline void parse_tools(const reader& holder, turn_request& request, response_style& style) {
  const auto tools = holder.find("tools");
  if (!tools) return;
  for (const auto& tool : tools->elements()) {
    if (string_of(tool.value(), "type") != "namespace") {
      parse_tool(tool, {}, request, style);
      continue;
    }
    const qualified_name space{tool.require("name").string(), {}};
    name_members(tool, "tools.namespace", {"description"}, request);
    for (const auto& inner : tool.require("tools").elements()) {
      parse_tool(inner, space, request, style);
    }
  }
}

inline void parse_tool_choice(const reader& root, turn_request& request) {
  if (const auto choice = root.find("tool_choice")) {
    const auto type = string_of(choice->value(), "type");
    const bool search = text::starts_with(type, "web_search") && !request.web.empty();
    if (!type.empty() && type != "function" && type != "custom" && type != "allowed_tools" &&
        !search) {
      choice->fail("forces '" + type + "', a tool that only OpenAI can run");
    }
    openai_chat::parse_tool_choice(*choice, request);
  }
  if (const auto parallel = root.find("parallel_tool_calls")) {
    request.choice.parallel = parallel->boolean();
  }
}

inline void parse_reasoning(const reader& root, turn_request& request, response_style& style) {
  if (const auto reasoning = root.find("reasoning")) {
    if (const auto effort = reasoning->find("effort")) parse_reasoning_effort(*effort, request);
    name_members(*reasoning, "reasoning", {"context", "mode"}, request, R"(["auto","standard"])");
    for (const char* name : {"summary", "generate_summary"}) {
      style.summarizes = style.summarizes || reasoning->find(name).has_value();
    }
  }
  const auto include = root.find("include");
  for (const auto& wanted : include ? include->elements() : std::vector<reader>()) {
    if (wanted.string() == "reasoning.encrypted_content") style.seals = true;
  }
  request.shows_thinking = style.summarizes || style.seals;
}

inline void parse_text(const reader& root, turn_request& request) {
  const auto wanted = root.find("text");
  if (!wanted) return;
  if (const auto verbosity = wanted->find("verbosity")) {
    if (verbosity->string() != "medium") name_ignored(request, "text.verbosity");
  }
  if (const auto format = wanted->find("format")) parse_answer_format(*format, request);
}

inline void parse_sampling(const reader& root, turn_request& request) {
  auto& sampling = request.sampling;
  if (const auto value = root.find("temperature")) sampling.temperature = value->number(0, 2);
  if (const auto value = root.find("top_p")) sampling.top_p = value->number(0, 1);
  if (const auto value = root.find("max_output_tokens")) {
    sampling.max_tokens = value->integer(1, 1'000'000'000);
  }
  if (const auto most = root.find("max_tool_calls")) {  // of OpenAI's own tools
    for (auto& tool : request.web) tool["max_uses"] = most->integer(1, 1'000);
    if (request.web.empty()) name_ignored(request, "max_tool_calls");
  }
}

/// Reads the items of an input into a request. What other servers' tools have added to a history
/// never ends it: the model gets it, or the client learns that it does not.
class input_parser {
 public:
  input_parser(turn_request& request, response_style& style)
      : request_(request), style_(style), history_(request.messages) {}

  void parse(const reader& input) {
    const auto items = input.elements();
    for (auto item = items.rbegin(); item != items.rend(); ++item) {
      if (text::ends_with(kind_of(*item), "_output")) outputs_[call_id(*item)].push_back(*item);
    }
    for (const auto& item : items) parse_item(item, &item == &items.back());
    history_.finish();
  }

 private:
  static std::string kind_of(const reader& item) {
    const auto type = item.find("type");
    return type ? type->string() : "message";
  }

  /// A local shell's output has no other id than that of its call.
  static std::string call_id(const reader& item) {
    const auto id = string_of(item.value(), "call_id");
    return id.empty() ? string_of(item.value(), "id") : id;
  }

  void parse_item(const reader& item, bool is_latest) {
    const auto kind = kind_of(item);
    if (kind == "message") return parse_message_item(item, history_, request_, is_latest);
    if (kind == "function_call") return parse_call_item(item, false, history_);
    if (kind == "custom_tool_call") return parse_call_item(item, true, history_);
    if (kind == "function_call_output" || kind == "custom_tool_call_output") {
      return parse_output_item(item, history_, request_, is_latest);
    }
    if (kind == "reasoning") return parse_reasoning_item(item, history_, request_);
    if (kind == "item_reference") {
      item.require("id").fail("is not an item that this server keeps; send the item itself");
    }
    if (kind == "configuration_update") {
      parse_reasoning(item, request_, style_);
      return parse_text(item, request_);
    }
    parse_foreign_item(item, kind);
  }

  void parse_foreign_item(const reader& item, const std::string& kind) {
    if (kind == "additional_tools" || kind == "tool_search_output") return offer_tools(item);
    if (kind == "web_search_call" && !request_.web.empty()) return;  // its process knows more
    const bool output = text::ends_with(kind, "_output");
    if (output && shown_outputs_.count(&item.value()) > 0) return;
    if (output || kind == "program" || text::ends_with(kind, "_call")) {
      const auto name_end = std::min(kind.rfind("_call"), kind.rfind("_output"));
      return add_call(item, kind.substr(0, name_end), output);
    }
    name_ignored_kind(request_, "input", kind);
    if (kind == "compaction_trigger" || kind == "ghost_snapshot" || kind == "mcp_list_tools")
      return;
    history_.add_note(kind, members_of(item.value(), false));
  }

  /// The tools are offered from there on, in place of those of the same names.
  void offer_tools(const reader& item) {
    turn_request offer;
    parse_tools(item, offer, style_);
    for (auto& tool : offer.tools) {
      auto& known = request_.tools;
      const auto same = [&](const tool_definition& one) { return one.name == tool.name; };
      known.erase(std::remove_if(known.begin(), known.end(), same), known.end());
      add_tool(item, std::move(tool), request_);
    }
    for (auto& tool : offer.web) {
      if (!has_tool(request_, string_of(tool, "name"))) request_.web.push_back(std::move(tool));
    }
    for (const auto& name : offer.ignored_params) name_ignored(request_, name);
  }

  /// A call and its output, which is an item of its own or stands in the call.
  void add_call(const reader& item, std::string name, bool is_output) {
    auto output = item;
    const auto later = outputs_.find(call_id(item));
    if (!is_output && later != outputs_.end() && !later->second.empty()) {
      output = later->second.back();
      later->second.pop_back();
      shown_outputs_.insert(&output.value());
    }
    auto input = is_output ? json::object() : members_of(item.value(), false);
    history_.add_finished_call(std::move(name), std::move(input), parse_outcome(output));
  }

  /// What a tool was asked, or what it has answered: the members of an item, without those that
  /// say nothing to a model.
  static json members_of(const json& item, bool answered) {
    const auto members = readable(item);
    json chosen = json::object();
    for (const auto& [name, value] : members.items()) {
      const auto is_one_of = [&key = name](std::initializer_list<const char*> names) {
        return std::find(names.begin(), names.end(), key) != names.end();
      };
      const bool silent = is_one_of({"id", "type", "call_id", "caller", "fingerprint"});
      const bool answers = is_one_of({"status", "output", "outputs", "result", "results", "error"});
      if (!silent && !value.is_null() && answers == answered) chosen[name] = value;
    }
    return chosen;
  }

  tool_result_part parse_outcome(const reader& item) {
    const auto members = members_of(item.value(), true);
    tool_result_part result;
    result.is_error = members.contains("error") || string_of(members, "status") == "failed";
    auto picture = string_of(member_of(members, "output"), "image_url");
    if (kind_of(item) == "image_generation_call" && members.contains("result")) {
      picture = "data:;base64," + string_of(members, "result");  // the bytes say what it is
    }
    auto words = string_of(members, "output");
    if (words.empty() && !members.empty()) words = dump(members);
    if (!picture.empty()) return add_picture(picture, kind_of(item), std::move(result));
    if (!words.empty()) result.content.emplace_back(text_part{std::move(words)});
    return result;
  }

  /// One that the API does not read would be refused with all of the history.
  tool_result_part add_picture(const json& address, const std::string& kind,
                               tool_result_part result) {
    try {
      result.content.emplace_back(
          openai_chat::parse_image(reader(address), std::nullopt, request_));
    } catch (const api_error&) {
      name_ignored_kind(request_, "input", kind);
    }
    return result;
  }

  turn_request& request_;
  response_style& style_;
  history_builder history_;
  std::map<std::string, std::vector<reader>> outputs_;  ///< by call, the first one last
  std::set<const json*> shown_outputs_;                 ///< with their calls
};

/// Names what is never honoured, unless it has a value that asks for nothing.
inline void name_ignored_fields(const reader& root, turn_request& request) {
  const std::map<const char*, const char*> neutral = {
      {"truncation", R"(["disabled"])"},
      {"include", R"([[],["reasoning.encrypted_content"],["web_search_call.action.sources"],)"
                  R"(["reasoning.encrypted_content","web_search_call.action.sources"]])"}};
  for (const auto& [name, values] : neutral) {
    const auto value = root.find(name);
    if (value && asks_for_something(*value, values)) name_ignored(request, name);
  }
}

/// Throws a 400 for what would have to be kept under an id that this server never gave.
inline void refuse_kept(const reader& root) {
  for (const char* name : {"conversation", "prompt"}) {
    if (const auto field = root.find(name)) {
      field->fail("is not kept by this server; send 'input' and 'previous_response_id'");
    }
  }
}

/// Responses request to neutral request. What it refers to (`previous_response_id`, items by their
/// id) stands in `input` already: see `response_store`.
inline parsed_request parse(const json& body, const reply_context& context) {
  const body_reader root(body);
  turn_request turn;
  response_style style;
  turn.messages_field = "input";
  style.may_search = context.web;
  refuse_foreign_body(root, "input");
  refuse_kept(root);
  if (const auto instructions = root.find("instructions")) append_instructions(*instructions, turn);
  const auto input = root.require("input");
  parse_tools(root, turn, style);
  parse_reasoning(root, turn, style);
  parse_text(root, turn);
  if (input.is_string()) {
    turn.messages.push_back({role::user, parse_content(input, turn, role::user, true)});
  } else {
    input_parser(turn, style).parse(input);
  }
  const auto* last = turn.messages.empty() ? nullptr : &turn.messages.back();
  const bool silent =
      last ? last->author == role::user && last->parts.empty() : turn.system.empty();
  if (silent) input.fail("must say something");
  normalize(turn.messages);
  parse_tool_choice(root, turn);
  parse_sampling(root, turn);
  parse_prompt_cache(root, turn);
  turn.thinking_field = turn.effort_field = "reasoning";
  parse_model_and_stream(root, turn);
  parse_session(root, turn);
  parse_agent(root, turn);
  parse_stream_options(root, turn);
  name_ignored_fields(root, turn);
  root.name_unread(turn);
  style.echo = make_echo(body);
  parsed_request parsed;
  parsed.turns.push_back(std::move(turn));
  parsed.reply = std::make_unique<response_reply>(context, std::move(style));
  return parsed;
}

constexpr dialect_functions dialect{"openai_responses", parse, openai_chat::render_error,
                                    http_status};

}  // namespace openai_responses

//================================================================================================
// [13] openai_completions - the legacy completions API: parses requests, writes answers
// uses: errors, json_access, conversation, fields, events, sse, openai_chat | pure
//================================================================================================
//
// https://platform.openai.com/docs/api-reference/completions
//
// Request   {"model", "prompt": "a" or ["a", "b"], "suffix"?, "max_tokens"?, "echo"?, "n"?, ...}
// Answer    {"id": "cmpl-1", "object": "text_completion", "created", "model", "choices": [{"index":
//            0, "text": "b", "finish_reason": "stop|length"}], "usage": {"prompt_tokens", ...}}
// Stream    data: {... as above, with a piece of the text}, and at the end data: [DONE]
// Error     as of chat completions

namespace openai_completions {

constexpr std::string_view continue_instructions =
    "You complete text. Reply with the text that follows the given text, beginning exactly where "
    "it ends, and with nothing else: do not repeat it, explain or greet, and use no code fence.";

constexpr std::string_view infill_instructions =
    "You fill gaps in text and code. Reply with exactly the text that belongs between <prefix> and "
    "<suffix>, and with nothing else: repeat neither of them, explain nothing, and use no code "
    "fence.";

/// Writes `text_completion` objects; streams use the same kind.
class completion_reply final : public reply {
 public:
  /// `echoes` is what each choice begins with: its prompt, or nothing.
  completion_reply(const reply_context& context, std::vector<std::string> echoes,
                   bool include_usage)
      : id_("cmpl-" + context.id),
        created_(context.created),
        echoes_(std::move(echoes)),
        include_usage_(include_usage),
        kinds_(echoes_.size(), block_kind::text) {}

  void write(std::size_t choice, const event& what, std::string& out) override {
    std::visit(overloaded{
                   [&](const turn_started& e) {
                     model_ = e.model;
                     if (!echoes_[choice].empty()) {
                       write_text(choice, echoes_[choice], json(), out);
                     }
                   },
                   [&](const block_started& e) { kinds_[choice] = e.kind; },
                   [&](const block_delta& e) {
                     if (kinds_[choice] == block_kind::text) {
                       write_text(choice, e.text, json(), out);
                     }
                   },
                   [](const block_stopped&) {},
                   [](const attempt_broken&) {},  // of answers that are not streamed
                   [&](const turn_stopped& e) { write_stop(choice, e, out); },
                   [&](const turn_failed& e) {
                     out += sse_data(openai_chat::render_error(e.error)) + sse_data("[DONE]");
                   },
               },
               what);
  }

  void write_keep_alive(std::string& out) override { out += ": keep-alive\n\n"; }

  std::string render(const std::vector<turn_result>& results) const override {
    json choices = json::array();
    token_usage usage;
    for (std::size_t i = 0; i < results.size(); ++i) {
      std::string words = echoes_[i];
      for (const auto& block : results[i].blocks) {
        if (block.kind == block_kind::text) words += block.text;
      }
      choices.push_back(choice_of(i, words, openai_chat::finish_reason(results[i].reason)));
      add_usage(usage, results[i].usage);
    }
    json whole = completion(results.front().model, std::move(choices));
    whole["usage"] = openai_chat::render_usage(usage);
    return dump(whole);
  }

 private:
  json completion(const std::string& model, json choices) const {
    return json::object({{"id", id_},
                         {"object", "text_completion"},
                         {"created", created_},
                         {"model", model},
                         {"system_fingerprint", json()},
                         {"choices", std::move(choices)}});
  }

  static json choice_of(std::size_t index, const std::string& words, json reason) {
    return json::object({{"text", words},
                         {"index", index},
                         {"logprobs", json()},
                         {"finish_reason", std::move(reason)}});
  }

  void write_text(std::size_t choice, const std::string& words, json reason,
                  std::string& out) const {
    json whole = completion(model_, json::array({choice_of(choice, words, std::move(reason))}));
    if (include_usage_) whole["usage"] = json();
    out += sse_data(dump(whole));
  }

  void write_stop(std::size_t choice, const turn_stopped& stopped, std::string& out) {
    write_text(choice, {}, openai_chat::finish_reason(stopped.reason), out);
    add_usage(usage_, stopped.usage);
    if (++stopped_ < echoes_.size()) return;
    if (include_usage_) {
      json whole = completion(model_, json::array());
      whole["usage"] = openai_chat::render_usage(usage_);
      out += sse_data(dump(whole));
    }
    out += sse_data("[DONE]");
  }

  std::string id_;
  std::int64_t created_;
  std::vector<std::string> echoes_;
  bool include_usage_;
  std::vector<block_kind> kinds_;
  std::string model_;
  token_usage usage_;
  std::size_t stopped_ = 0;
};

inline std::vector<std::string> parse_prompts(const reader& prompt) {
  std::vector<std::string> prompts;
  if (prompt.is_string()) return {prompt.string()};
  for (const auto& one : prompt.elements()) {
    if (!one.is_string()) one.fail("must be a text: token ids of other models mean nothing here");
    prompts.push_back(one.string());
  }
  if (prompts.empty()) prompt.fail("must hold at least one text");
  return prompts;
}

/// The question that makes a chat model complete text.
inline void ask_for_completion(const std::string& prompt, const std::string& suffix,
                               turn_request& request) {
  request.system = suffix.empty() ? continue_instructions : infill_instructions;
  const auto words =
      suffix.empty() ? prompt : "<prefix>" + prompt + "</prefix><suffix>" + suffix + "</suffix>";
  request.messages.clear();
  if (!words.empty()) request.messages.push_back({role::user, {text_part{words}}});
  normalize(request.messages);
}

inline parsed_request parse(const json& body, const reply_context& context) {
  const body_reader root(body);
  turn_request turn;
  refuse_foreign_body(root, "prompt");
  const auto prompts = parse_prompts(root.require("prompt"));
  openai_chat::parse_sampling(root, turn);
  parse_model_and_stream(root, turn);
  parse_session(root, turn);
  std::size_t n = 1;
  if (const auto wanted = root.find("n")) n = static_cast<std::size_t>(wanted->integer(1, 8));
  if (prompts.size() * n > 32) root.require("prompt").fail("asks for more than 32 completions");
  const auto echo = root.find("echo");
  const auto suffix = root.find("suffix");
  for (const auto& field : openai_chat::ignored_fields) {
    const auto value = root.find(field.name);
    if (!value || field.name == std::string_view("logprobs")) continue;
    if (openai_chat::check_ignored(field, *value)) name_ignored(turn, field.name);
  }
  if (root.find("logprobs")) name_ignored(turn, "logprobs");
  if (const auto best = root.find("best_of")) {
    if (best->integer(1, 20) > 1) name_ignored(turn, "best_of");
  }
  const bool include_usage = parse_stream_options(root, turn);
  root.name_unread(turn);
  parsed_request parsed;
  std::vector<std::string> echoes;
  for (const auto& prompt : prompts) {
    ask_for_completion(prompt, suffix ? suffix->string() : std::string(), turn);
    parsed.turns.insert(parsed.turns.end(), n, turn);
    echoes.insert(echoes.end(), n, echo && echo->boolean() ? prompt : std::string());
  }
  parsed.reply = std::make_unique<completion_reply>(context, std::move(echoes), include_usage);
  return parsed;
}

/// Mistral's fill-in-the-middle: the request of a completion, with the answer of a chat
/// (https://docs.mistral.ai/api/endpoint/fim).
inline parsed_request parse_fim(const json& body, const reply_context& context) {
  auto parsed = parse(body, context);
  openai_chat::reply_style style;
  style.choices = parsed.turns.size();
  parsed.reply = std::make_unique<openai_chat::chat_reply>(context, style);
  return parsed;
}

constexpr dialect_functions dialect{"openai_completions", parse, openai_chat::render_error,
                                    http_status};
constexpr dialect_functions fim_dialect{"openai_completions", parse_fim, openai_chat::render_error,
                                        http_status};

}  // namespace openai_completions

//================================================================================================
// [14] catalog - the models a client may name, what each can be asked, and what it costs
// uses: text, json_access, options, conversation, fields, events | pure
//================================================================================================

struct model_entry {
  std::string id;
  std::int64_t created = 0;          ///< unix seconds; from the date in the id, else 0
  std::string claude_required = {};  ///< the API wants a newer Claude Code for it: which
};

/// Ids that the reference wrapper's README names; clients are configured with them.
constexpr std::array<std::string_view, 11> well_known_models = {
    {"claude-opus-4-5-20251101", "claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001",
     "claude-opus-4-1-20250805", "claude-opus-4-20250514", "claude-sonnet-4-20250514",
     "claude-3-7-sonnet-20250219", "claude-3-5-sonnet-20241022", "claude-3-5-haiku-20241022",
     "sonnet", "haiku"}};

/// That README names one more, which was never released, in the place of this one.
inline std::string released_model(const std::string& id) {
  return id == "claude-opus-4-5-20250929" ? "claude-opus-4-5-20251101" : id;
}

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

/// The alias that the operator has given this name; null for none.
inline const model_alias* find_alias(const options& settings, const std::string& name) {
  const auto fits = [&](const model_alias& alias) {
    return ::fnmatch(alias.pattern.c_str(), name.c_str(), 0) == 0;
  };
  const auto& all = settings.aliases;
  const auto found = std::find_if(all.begin(), all.end(), fits);
  return found == all.end() ? nullptr : &*found;
}

/// The operator's default and aliases that are names, what the CLI reports, and the well-known ids;
/// each once, in that order.
inline std::vector<model_entry> make_catalog(const options& settings,
                                             const std::vector<std::string>& reported) {
  std::vector<std::string> ids{settings.default_model};
  for (const auto& alias : settings.aliases) {
    if (alias.pattern.find_first_of("*?[\\") == std::string::npos) ids.push_back(alias.pattern);
  }
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

/// The first two numbers of a model's id that are no date: `claude-opus-4-6` is 4 and 6, and so are
/// `us.anthropic.claude-opus-4-6-v1:0`, `claude-opus-4-6@20260101` and `claude-opus-4-6[1m]`.
inline std::pair<int, int> model_generation(std::string id) {
  constexpr std::string_view separators = "@[]:.";
  const auto separates = [&](char c) { return separators.find(c) != std::string_view::npos; };
  std::replace_if(id.begin(), id.end(), separates, '-');
  std::vector<int> numbers;
  for (const auto& word : text::split(id, '-')) {
    const auto number = text::try_number<int>(word);
    if (number && *number < 100) numbers.push_back(*number);
  }
  numbers.resize(2);
  return {numbers[0], numbers[1]};
}

/// By what the CLI reports of its models (`always_thinking`), else by the generation in the id
/// (https://platform.claude.com/docs/en/build-with-claude/extended-thinking). An alias means the
/// newest model.
///
/// In the place of Opus 4 and 4.1, which are retired, the CLI puts the newest Opus that it knows.
inline model_traits traits_of(const std::string& id,
                              const std::vector<std::string>& always_thinking) {
  const auto generation = model_generation(id);
  const bool retired = id.find("opus-4") != std::string::npos && generation < std::make_pair(4, 5);
  const std::string known = retired ? "opus" : id;
  const bool dated = generation.first > 0 && !retired;
  const bool reported =
      std::find(always_thinking.begin(), always_thinking.end(), known) != always_thinking.end();
  model_traits traits;
  traits.always_thinks = reported || (dated && generation >= std::make_pair(4, 7));
  traits.one_sampling_knob = !dated || generation >= std::make_pair(4, 1);
  traits.never_thinks = dated && generation.first < 4;
  const int middle = id.find("opus") != std::string::npos ? 1 : 0;  // Opus 4.5 was the first
  if (dated && generation == std::make_pair(4, 6)) traits.efforts = 2;
  if (dated && generation < std::make_pair(4, 6))
    traits.efforts = generation.second == 5 ? middle : 0;
  return traits;
}

/// USD per million tokens, of the models of a family from a generation on.
struct model_price {
  std::string_view family;
  std::pair<int, int> since;
  double input;
  double output;
  double cache_read;
  double long_factor = 1;  ///< for prompts of more than 100,000 tokens
};

/// Anthropic's public list prices (https://platform.claude.com/docs/en/about-claude/pricing), as
/// the CLI reckons with them too (2.1.330). The first that fits counts; the last is the dearest.
constexpr std::array<model_price, 13> model_prices = {{{"fable", {5, 2}, 8, 40, 0.2},
                                                       {"fable", {0, 0}, 10, 50, 1},
                                                       {"mythos", {0, 0}, 10, 50, 1},
                                                       {"opus", {5, 5}, 4, 20, 0.2},
                                                       {"opus", {4, 5}, 5, 25, 0.5},
                                                       {"sonnet", {5, 5}, 2, 10, 0.1},
                                                       {"sonnet", {5, 0}, 2, 10, 0.2},
                                                       {"sonnet", {0, 0}, 3, 15, 0.3},
                                                       {"haiku", {5, 5}, 0.1, 0.5, 0.01, 5},
                                                       {"haiku", {4, 0}, 1, 5, 0.1},
                                                       {"haiku", {3, 5}, 0.8, 4, 0.08},
                                                       {"haiku", {0, 0}, 0.25, 1.25, 0.03},
                                                       {"", {0, 0}, 15, 75, 1.5}}};

/// The price of a model, by its id or alias, which means the newest of its family; of one that
/// nobody knows the dearest.
inline const model_price& price_of(const std::string& model) {
  auto generation = model_generation(model);
  if (generation == std::make_pair(0, 0)) generation = {100, 0};
  return *std::find_if(model_prices.begin(), model_prices.end(), [&](const model_price& price) {
    return model.find(price.family) != std::string::npos && generation >= price.since;
  });
}

/// What one call of the API costs, in USD. A write to the cache costs 1.25 of the input's price for
/// five minutes, twice of it for an hour.
inline double estimate_cost(const std::string& model, const token_usage& used) {
  constexpr double million = 1e6;
  const auto& price = price_of(model);
  const auto written = std::max(used.cache_write, used.cache_write_5m);
  const auto input = static_cast<double>(used.input) +
                     1.25 * static_cast<double>(used.cache_write_5m) +
                     2 * static_cast<double>(written - used.cache_write_5m);
  const double cost = input * price.input + static_cast<double>(used.output) * price.output +
                      static_cast<double>(used.cache_read) * price.cache_read;
  constexpr double of_search = 0.01;
  const auto searches = integer_of(member_of(used.api, "server_tool_use"), "web_search_requests");
  return cost * (used.prompt() > 100'000 ? price.long_factor : 1) / million +
         static_cast<double>(searches) * of_search;
}

inline void limit_thinking(turn_request& request, const model_traits& model) {
  const bool by_effort = request.effort != reasoning_effort::none && !request.no_thinking;
  if (!request.thinking_tokens && by_effort) {
    request.thinking_tokens = thinking_budget(request.effort);
  }
  if (request.thinking_tokens.value_or(0) > 0) request.shows_thinking = true;
  constexpr std::int64_t least = 1024;
  const bool forced = request.choice.kind == tool_choice::how::any ||
                      request.choice.kind == tool_choice::how::named;
  const auto room = request.sampling.max_tokens.value_or(1'000'000) - 1;
  const auto budget = std::min(thinking_budget(request.effort), room);
  if (request.thinking_tokens.value_or(0) > 0 && !model.always_thinks) {
    request.thinking_tokens = std::min(*request.thinking_tokens, room);
    if (forced || room < least || model.never_thinks) {
      name_ignored(request, request.thinking_field);
      const bool same = request.effort_field == std::string_view(request.thinking_field);
      if (same) request.effort = reasoning_effort::none;
      request.thinking_tokens.reset();
    }
  }
  if (request.no_thinking && model.always_thinks) {
    name_ignored(request, request.thinking_field);
    // OpenAI's `none` is an effort: the least there is. With Anthropic's it has nothing to do.
    if (!request.thinking_tokens) request.effort = reasoning_effort::minimal;
  }
  request.thinks = model.always_thinks || request.thinking_tokens.value_or(0) > 0;
  // Newer models think as much as they see fit, and take an effort instead.
  const bool counts = model.efforts < 2;
  if (request.budget_field != nullptr && request.thinking_tokens.value_or(0) > 0 && !counts) {
    name_ignored(request, request.budget_field);
  }
  // Older models take an effort as a number of tokens.
  const bool counted = counts && budget > 0 && request.thinking_tokens == budget;
  int needed = request.effort == reasoning_effort::max ? 2 : 1;
  if (request.effort == reasoning_effort::xhigh) needed = 3;
  if (request.effort != reasoning_effort::none && !counted && model.efforts < needed) {
    name_ignored(request, request.effort_field);
  }
}

/// A model that thinks cannot be forced to call a tool (the API refuses it): it is asked to.
inline void limit_tool_choice(turn_request& request) {
  auto& choice = request.choice;
  const bool named = choice.kind == tool_choice::how::named;
  if (!request.thinks || (!named && choice.kind != tool_choice::how::any)) return;
  name_ignored(request, "tool_choice");
  request.nudge = named ? "Answer with a call of the tool `" + choice.name + "` and nothing else."
                        : "Answer with a call of one of your tools and nothing else.";
  choice.kind = tool_choice::how::automatic;
}

inline void limit_sampling(turn_request& request, const model_traits& model) {
  auto& sampling = request.sampling;
  const auto drop = [&](auto& value, const char* name, bool is_neutral) {
    if (value && !is_neutral) name_ignored(request, request.sampling_place + name);
    value.reset();
  };
  if (sampling.temperature > 1) {
    drop(sampling.temperature, "temperature", false);
    sampling.temperature = 1;
  }
  if (request.thinks) {
    drop(sampling.temperature, "temperature", sampling.temperature == 1);
    drop(sampling.top_k, "top_k", false);
  }
  if (request.thinks || model.one_sampling_knob) drop(sampling.top_p, "top_p", sampling.top_p == 1);
}

/// The API takes no stop text of white space alone: the proxy cuts at those by itself, but not in
/// an answer that follows a schema.
inline void limit_stops(turn_request& request) {
  constexpr std::size_t max_cut = 256;
  auto& sampling = request.sampling;
  const auto blank =
      std::stable_partition(sampling.stop.begin(), sampling.stop.end(),
                            [](const std::string& stop) { return !text::is_blank(stop); });
  for (auto stop = blank; stop != sampling.stop.end(); ++stop) {
    if (stop->empty() || stop->size() > max_cut || request.schema) {
      name_ignored(request, request.stop_field);
    } else {
      sampling.cut_at.push_back(*stop);
    }
  }
  sampling.stop.erase(blank, sampling.stop.end());
}

/// Takes out of the request what the API would refuse, and names it. The one place that knows:
///
/// - thinking goes with no temperature, top_p or top_k, needs 1,024 tokens below `max_tokens`, and
///   cannot be had where a tool must be called; where it cannot be turned off, the tool gives way;
/// - later models take temperature or top_p, not both, and the CLI always sends a temperature; none
///   takes one above 1;
/// - a stop text must hold more than white space.
inline void apply_model_limits(turn_request& request, const model_traits& model) {
  limit_thinking(request, model);
  limit_tool_choice(request);
  limit_sampling(request, model);
  limit_stops(request);
}

inline json render_model(const model_entry& entry) {
  json row = json::object({{"id", entry.id},
                           {"object", "model"},
                           {"created", entry.created},
                           {"owned_by", "anthropic"}});
  if (!entry.claude_required.empty()) row["claude_code_required"] = entry.claude_required;
  return row;
}

inline json render_models(const std::vector<model_entry>& catalog) {
  json rows = json::array();
  for (const auto& entry : catalog) rows.push_back(render_model(entry));
  return json::object({{"object", "list"}, {"data", rows}});
}

/// In the Messages API's shape (https://platform.claude.com/docs/en/api/models-list).
inline json render_page_model(const model_entry& entry) {
  const std::chrono::system_clock::time_point created{std::chrono::seconds(entry.created)};
  json row = json::object({{"type", "model"},
                           {"id", entry.id},
                           {"display_name", entry.id},
                           {"created_at", text::iso_time(created)}});
  if (!entry.claude_required.empty()) row["claude_code_required"] = entry.claude_required;
  return row;
}

/// One page: at most `limit` models after or before an id. Empty parameters are not given.
inline json render_model_page(const std::vector<model_entry>& catalog, const std::string& limit,
                              const std::string& after, const std::string& before) {
  const auto most =
      limit.empty() ? std::optional<std::size_t>(20) : text::try_number<std::size_t>(limit);
  if (!most || *most < 1 || *most > 1000) throw bad_field("limit", "must be from 1 to 1000");
  const auto position = [&](const std::string& id) {
    const auto found = std::find_if(catalog.begin(), catalog.end(),
                                    [&](const model_entry& entry) { return entry.id == id; });
    return static_cast<std::size_t>(found - catalog.begin());
  };
  std::size_t begin = after.empty() ? 0 : std::min(position(after) + 1, catalog.size());
  std::size_t end = before.empty() ? catalog.size() : position(before);
  const bool more = end > begin && end - begin > *most;
  if (more && before.empty()) end = begin + *most;
  if (more && !before.empty()) begin = end - *most;
  json rows = json::array();
  for (auto i = begin; i < end; ++i) rows.push_back(render_page_model(catalog[i]));
  return json::object({{"data", rows},
                       {"has_more", more},
                       {"first_id", rows.empty() ? json() : rows.front()["id"]},
                       {"last_id", rows.empty() ? json() : rows.back()["id"]}});
}

//================================================================================================
// [15] ollama - Ollama's own API: parses requests, writes answers, describes models
// uses: text, errors, json_access, conversation, fields, events, sse, openai_chat,
//       openai_completions, catalog | pure
//================================================================================================
//
// https://github.com/ollama/ollama/blob/main/docs/api.md, with `api/types.go` there (0.32):
//
//   {"model":"sonnet:latest","stream":true,"think":true,"format":"json","keep_alive":"5m",
//    "options":{"temperature":0.5,"num_predict":100,"stop":["END"],"num_ctx":8192},
//    "tools":[{"type":"function","function":{"name":"look","parameters":{…}}}],
//    "messages":[{"role":"user","content":"What is it like there?","images":["iVBORw0KGgo…"]},
//     {"role":"assistant","content":"","tool_calls":[{"function":{"name":"look","arguments":{}}}]},
//     {"role":"tool","tool_name":"look","content":"Sunny"}]}
//
// The answer to `POST /api/chat`, a line each; not streamed, it is one such object. `/api/generate`
// takes `prompt`, `suffix` and `system`, and has `"response":"Sun"` in the place of the message.
//
//   {"model":"claude-x","created_at":"2026-11-30T09:00:00.123456789Z",
//    "message":{"role":"assistant","content":"","thinking":"Well"},"done":false}
//   {…,"message":{"role":"assistant","content":"Sun"},"done":false}
//   {…,"message":{…,"tool_calls":[{"id":"toolu_1","function":{"index":0,"name":"look",
//    "arguments":{"city":"Rome"}}}]},"done":false}
//   {…,"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",
//    "total_duration":9000000,"load_duration":0,"prompt_eval_count":26,"prompt_eval_duration":…,
//    "eval_count":9,"eval_duration":…}     or, in the place of any line: {"error":"Overloaded"}

namespace ollama {

constexpr int port = 11434;  ///< where Ollama's clients look for it

/// Of Ollama: some clients refuse an older one than they know.
constexpr const char* version = "0.32.0";

inline std::string render_error(const api_error& error, const std::string& = {}) {
  return dump(json::object({{"error", error.message}}));
}

/// Ollama has no reason for calls: they stand beside the text.
inline const char* done_reason(stop_reason reason) {
  return reason == stop_reason::tool_use ? "stop" : openai_chat::finish_reason(reason);
}

/// Writes the objects of `/api/chat` or, where it is no chat, of `/api/generate`.
class ollama_reply final : public reply {
 public:
  /// `load_reason`: the end of the answer to a request that asks for none.
  ollama_reply(const reply_context& context, bool is_chat, std::string model,
               const char* load_reason)
      : context_(context), is_chat_(is_chat), model_(std::move(model)), load_reason_(load_reason) {}

  void write(std::size_t, const event& what, std::string& out) override {
    std::visit(overloaded{
                   [&](const turn_started& e) { model_ = e.model; },
                   [&](const block_started& e) {
                     block_ = {e.kind, {}, e.id, e.name, {}};
                   },
                   [&](const block_delta& e) {
                     block_.text += e.text;
                     const bool sealed = block_.kind == block_kind::redacted_thinking;
                     if (!sealed && block_.kind != block_kind::tool_call) write_block(out);
                   },
                   [&](const block_stopped&) {
                     if (block_.kind == block_kind::tool_call) write_block(out);
                   },
                   [](const attempt_broken&) {},  // of answers that are not streamed
                   [&](const turn_stopped& e) { out += dump(ended({}, e.reason, e.usage)) + "\n"; },
                   [&](const turn_failed& e) { out += render_error(e.error) + "\n"; },
               },
               what);
  }

  /// A piece without text: clients parse every line.
  void write_keep_alive(std::string& out) override { out += dump(object_of({})) + "\n"; }

  const char* stream_type() const override { return "application/x-ndjson"; }

  std::string render(const std::vector<turn_result>& results) const override {
    if (results.empty()) return dump(last_of({}, load_reason_));
    auto whole = ended(results[0].blocks, results[0].reason, results[0].usage);
    whole["model"] = results[0].model;
    return dump(whole);
  }

 private:
  using block = turn_result::block;

  json object_of(const std::vector<block>& blocks) const {
    std::string content;
    std::string thinking;
    json calls = json::array();
    for (const auto& one : blocks) {
      switch (one.kind) {
        case block_kind::text: content += one.text; break;
        case block_kind::thinking:
        case block_kind::activity: thinking += one.text; break;
        case block_kind::search:  // nobody can ask for them here
        case block_kind::found:
        case block_kind::redacted_thinking: break;
        case block_kind::tool_call: add_call(one, calls);
      }
    }
    json fields = json::object();
    if (is_chat_) fields["role"] = "assistant";
    fields[is_chat_ ? "content" : "response"] = std::move(content);
    if (!thinking.empty()) fields["thinking"] = std::move(thinking);
    if (!calls.empty()) fields["tool_calls"] = std::move(calls);
    json object =
        json::object({{"model", model_}, {"created_at", text::iso_time(context_.times().now, 9)}});
    if (is_chat_) object["message"] = std::move(fields);
    if (!is_chat_) object.update(fields);
    object["done"] = false;
    return object;
  }

  /// One that the token limit has cut has no whole input; `done_reason` says so.
  void add_call(const block& call, json& calls) const {
    const bool nothing = text::trim(call.text).empty();
    json input = nothing ? json::object() : try_parse_json(call.text);
    if (!input.is_object()) return;
    const json function = json::object(
        {{"index", calls_ + calls.size()}, {"name", call.name}, {"arguments", std::move(input)}});
    calls.push_back(json::object({{"id", call.id}, {"function", function}}));
  }

  json last_of(const std::vector<block>& blocks, const char* reason) const {
    json object = object_of(blocks);
    object["done"] = true;
    object["done_reason"] = reason;
    return object;
  }

  /// With times in nanoseconds. Nothing is loaded here: it is the wait for a process.
  json ended(const std::vector<block>& blocks, stop_reason reason, const token_usage& usage) const {
    json object = last_of(blocks, done_reason(reason));
    const auto times = context_.times();
    object["total_duration"] = times.total.count();
    object["load_duration"] = times.queued.count();
    object["prompt_eval_count"] = usage.prompt();
    object["prompt_eval_duration"] = times.first.count();
    object["eval_count"] = usage.output;
    object["eval_duration"] = times.rest.count();
    if (usage.cost_usd) object["cost"] = *usage.cost_usd;
    return object;
  }

  /// Writes the open block as far as it has come.
  void write_block(std::string& out) {
    const auto object = object_of({block_});
    if (block_.kind == block_kind::tool_call) ++calls_;
    block_.text.clear();
    out += dump(object) + "\n";
  }

  reply_context context_;
  bool is_chat_;
  std::string model_;
  const char* load_reason_;
  block block_;            ///< that is open, with what of it was not written
  std::size_t calls_ = 0;  ///< that were written
};

/// A call that waits for its result: its id, and the name of the tool.
using open_call = std::pair<std::string, std::string>;

/// The id of the call that a result answers: the one that it names, by id or by tool, else the
/// first. Clients of older versions of Ollama name none.
inline std::string take_call(const reader& result, std::vector<open_call>& open) {
  const auto id = string_of(result.value(), "tool_call_id");
  const auto name = string_of(result.value(), "tool_name");
  const auto find = [&](auto fits) { return std::find_if(open.begin(), open.end(), fits); };
  auto found = find([&](const open_call& call) { return call.first == id; });
  if (found == open.end()) {
    found = find([&](const open_call& call) { return call.second == name; });
  }
  if (found == open.end()) found = open.begin();
  if (found == open.end()) return id;
  auto taken = std::move(found->first);
  open.erase(found);
  return taken;
}

/// Each as base64, or as a `data:` URI of it.
inline std::vector<content_part> parse_images(const reader& source) {
  std::vector<content_part> parts;
  const auto images = source.find("images");
  if (!images) return parts;
  for (const auto& image : images->elements()) {
    auto media = try_data_uri(image.string()).value_or(media_part{});
    if (media.data.empty()) media.data = image.string();
    check_media(image, media);
    if (!text::starts_with(media.media_type, "image/")) image.fail("is not an image");
    parts.emplace_back(std::move(media));
  }
  return parts;
}

inline void parse_calls(const reader& calls, message& entry, std::vector<open_call>& open,
                        const std::string& stem) {
  for (const auto& call : calls.elements()) {
    auto id = string_of(call.value(), "id");
    if (id.empty()) id = stem + std::to_string(entry.parts.size());
    auto part = openai_chat::parse_function_call(call.require("function"), std::move(id));
    open.emplace_back(part.id, part.name);
    entry.parts.emplace_back(std::move(part));
  }
}

/// Adds one message; `open` are the calls before it that have no result.
inline void parse_message(const reader& source, turn_request& request,
                          std::vector<open_call>& open) {
  const auto role_name = source.require("role");
  const auto speaker = text::to_lower(role_name.string());
  const auto content = source.find("content");
  message entry;
  if (speaker == "system" || speaker == "assistant") {
    name_members(source, "messages", {"images"}, request, "[[]]");
  } else {
    entry.parts = parse_images(source);
  }
  if (speaker == "system") {
    if (content) take_instructions(*content, request);
    return;
  }
  if (content && !content->string().empty()) entry.parts.emplace_back(text_part{content->string()});
  if (speaker == "assistant") {
    entry.author = role::assistant;
    name_members(source, "messages", {"thinking"}, request, R"([""])");  // it has no signature
    const auto stem = "call_" + std::to_string(request.messages.size()) + "_";
    if (const auto calls = source.find("tool_calls")) parse_calls(*calls, entry, open, stem);
  } else if (speaker == "tool") {
    entry.parts = {make_result(take_call(source, open), std::move(entry.parts))};
  } else if (speaker != "user") {
    role_name.fail("must be system, user, assistant or tool");
  }
  request.messages.push_back(std::move(entry));
}

/// A word, by which the answer is any JSON object, or its schema.
inline void parse_format(const reader& format, turn_request& request) {
  if (!format.is_string()) return take_answer_schema(format, request);
  if (format.string().empty()) return;
  if (format.string() != "json") format.fail("must be json or a JSON Schema");
  request.schema = json::object({{"type", "object"}});
  request.schema_field = "format";
}

/// Whether to think, or how hard.
inline void parse_think(const reader& think, turn_request& request) {
  request.thinking_field = request.effort_field = "think";
  if (think.is_string()) return parse_reasoning_effort(think, request);
  request.no_thinking = !think.boolean();
  if (think.boolean()) request.thinking_tokens = thinking_budget(reasoning_effort::medium);
}

/// Those of Ollama's own runners mean nothing here: what is not honoured is named, unless it has
/// the value that asks for nothing.
inline void parse_options(const reader& options, turn_request& request) {
  constexpr std::int64_t most = 1'000'000'000;
  auto& sampling = request.sampling;
  request.stop_field = "options.stop";
  request.sampling_place = "options.";
  if (const auto value = options.find("temperature")) sampling.temperature = value->number(0, 2);
  if (const auto value = options.find("top_p")) sampling.top_p = value->number(0, 1);
  if (const auto value = options.find("top_k")) sampling.top_k = value->integer(0, most);
  if (sampling.top_k == 0) sampling.top_k.reset();
  if (const auto value = options.find("num_predict"))
    sampling.max_tokens = value->integer(-2, most);
  if (sampling.max_tokens <= 0) sampling.max_tokens.reset();  // without an end
  if (const auto stop = options.find("stop")) {
    for (const auto& one : stop->elements()) sampling.stop.push_back(one.string());
  }
  constexpr std::array<std::string_view, 5> honoured = {"temperature", "top_p", "top_k",
                                                        "num_predict", "stop"};
  const json neutral = parse_json(
      R"({"presence_penalty":0,"frequency_penalty":0,"repeat_penalty":1,"min_p":0,"typical_p":1,)"
      R"("tfs_z":1,"mirostat":0})");
  for (const auto& [name, value] : options.value().items()) {
    const bool known = std::find(honoured.begin(), honoured.end(), name) != honoured.end();
    const bool idle = value == false || value == member_of(neutral, name.c_str());
    if (!known && !idle && !value.is_null()) name_ignored_kind(request, "options", name);
  }
}

/// What chat and completions ask for alike. Clients of Ollama stream unless they say otherwise.
inline turn_request parse_common(const reader& root) {
  turn_request turn;
  turn.stream = true;
  parse_model_and_stream(root, turn);
  if (const auto format = root.find("format")) parse_format(*format, turn);
  if (const auto think = root.find("think")) parse_think(*think, turn);
  if (const auto options = root.find("options")) parse_options(*options, turn);
  parse_session(root, turn);
  return turn;
}

/// The request, or where nothing is asked none: clients load a model so, or unload it.
inline parsed_request finish(const body_reader& root, turn_request turn, bool asks, bool is_chat,
                             const reply_context& context) {
  const auto foreign = root.find(is_chat ? "prompt" : "messages");
  if (foreign && !asks)
    foreign->fail(is_chat ? "belongs to /api/generate" : "belongs to /api/chat");
  const auto kept = root.find("keep_alive");
  const bool unloads = kept && !asks_for_something(*kept, R"([0,"0","0s","0m","0h"])");
  parse_agent(root, turn);
  root.name_unread(turn);
  parsed_request parsed;
  parsed.reply =
      std::make_unique<ollama_reply>(context, is_chat, turn.model, unloads ? "unload" : "load");
  if (asks) parsed.turns.push_back(std::move(turn));
  return parsed;
}

inline parsed_request parse_chat(const json& body, const reply_context& context) {
  const body_reader root(body);
  auto turn = parse_common(root);
  const auto messages = root.find("messages");
  const bool asks = messages && !messages->elements().empty();
  std::vector<open_call> open;
  if (asks) {
    for (const auto& one : messages->elements()) parse_message(one, turn, open);
  }
  normalize(turn.messages);
  openai_chat::reply_style style;
  openai_chat::parse_tools(root, turn, style);
  return finish(root, std::move(turn), asks, true, context);
}

inline parsed_request parse_generate(const json& body, const reply_context& context) {
  const body_reader root(body);
  auto turn = parse_common(root);
  turn.messages_field = "prompt";
  const auto text_at = [&](const char* name) {
    const auto given = root.find(name);
    return given ? given->string() : std::string();
  };
  const auto prompt = text_at("prompt");
  const auto suffix = text_at("suffix");
  const auto tokens = root.find("context");
  if (tokens && !tokens->elements().empty()) {
    tokens->fail("means nothing here: token ids are another model's; use /api/chat");
  }
  turn.messages.push_back({role::user, parse_images(root)});
  if (!prompt.empty()) turn.messages[0].parts.emplace_back(text_part{prompt});
  const bool asks = !turn.messages[0].parts.empty() || !suffix.empty();
  if (!suffix.empty()) openai_completions::ask_for_completion(prompt, suffix, turn);
  if (const auto system = root.find("system")) append_instructions(*system, turn);
  normalize(turn.messages);
  return finish(root, std::move(turn), asks, false, context);
}

// ---- models -----------------------------------------------------------------------------------

/// As Ollama calls a model: with a tag, which `latest` stands for.
inline std::string tagged(const std::string& id) {
  return id.find(':') == std::string::npos ? id + ":latest" : id;
}

/// In the place of a file's hash, of which clients show the first digits.
inline std::string digest_of(const std::string& id) {
  auto digits = std::to_string(std::hash<std::string>()(id));
  digits.resize(64, '0');
  return digits;
}

/// What Ollama knows of a model's file is empty here.
inline json render_details() {
  return parse_json(R"({"parent_model":"","format":"","family":"claude","families":["claude"],)"
                    R"("parameter_size":"","quantization_level":""})");
}

inline std::string time_of(const model_entry& entry) {
  return text::iso_time(std::chrono::system_clock::time_point(std::chrono::seconds(entry.created)));
}

inline json render_models(const std::vector<model_entry>& catalog) {
  json rows = json::array();
  for (const auto& entry : catalog) {
    rows.push_back(json::object({{"name", tagged(entry.id)},
                                 {"model", tagged(entry.id)},
                                 {"modified_at", time_of(entry)},
                                 {"size", 0},
                                 {"digest", digest_of(entry.id)},
                                 {"details", render_details()}}));
  }
  return json::object({{"models", rows}});
}

inline json render_model(const model_entry& entry, const model_traits& traits) {
  const bool is_long = entry.id.find("[1m]") != std::string::npos;
  json capabilities = json::array({"completion", "tools", "insert", "vision"});
  if (!traits.never_thinks) capabilities.push_back("thinking");
  return json::object(
      {{"modelfile", ""},
       {"parameters", ""},
       {"template", ""},
       {"details", render_details()},
       {"model_info", json::object({{"general.architecture", "claude"},
                                    {"general.basename", entry.id},
                                    {"claude.context_length", is_long ? 1'000'000 : 200'000}})},
       {"capabilities", std::move(capabilities)},
       {"modified_at", time_of(entry)}});
}

constexpr dialect_functions chat_dialect{"ollama", parse_chat, render_error, http_status};
constexpr dialect_functions generate_dialect{"ollama", parse_generate, render_error, http_status};

}  // namespace ollama

//================================================================================================
// [16] cli_protocol - the lines that `claude` reads and writes (stream-json)
// uses: text, errors, json_access, conversation, fields, events, catalog | pure
//================================================================================================
//
// One JSON object per line each way. Seen on the real CLI, 2.1.120 to 2.1.330; the transcripts in
// tests/golden are its own words.

/// `2.1.330 (Claude Code)` to numbers; nullopt when it is no version.
inline std::optional<std::array<int, 3>> parse_version(std::string_view content) {
  const auto words = text::split(content, ' ');
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

/// The API's own message of a failure, out of the CLI's wording of it: `API Error: 400 {…}`,
/// `API Error: Request rejected (429) · …`, `Failed to authenticate. API Error: 403 …`.
inline std::string upstream_message(std::string_view message) {
  if (const auto brace = message.find('{'); brace != std::string_view::npos) {
    const json body = try_parse_json(message.substr(brace));
    auto inner = string_of(member_of(body, "error"), "message");
    if (!inner.empty()) return inner;
  }
  constexpr std::string_view mark = "API Error: ";
  if (const auto at = message.find(mark); at != std::string_view::npos) {
    message.remove_prefix(at + mark.size());
  }
  if (text::starts_with(message, "Request rejected (")) {
    constexpr std::string_view dot = "\xC2\xB7 ";
    if (const auto at = message.find(dot); at != std::string_view::npos) {
      message.remove_prefix(at + dot.size());
    }
  }
  const auto status_end = message.find(' ');
  if (status_end == 3 && text::try_number<int>(message.substr(0, 3))) message.remove_prefix(4);
  // Advice of the CLI to its own users, behind the API's message.
  constexpr std::array<std::string_view, 4> advices = {
      ". This is a server-side issue", " Run --model", " \xC2\xB7 Fix external API key",
      " Check the gateway"};
  for (const auto advice : advices) message = message.substr(0, message.find(advice));
  return std::string(message);
}

inline error_kind kind_of_upstream_status(std::int64_t status) {
  switch (status) {
    case 400:
    case 422: return error_kind::invalid_request;
    case 401: return error_kind::authentication;
    case 402: return error_kind::billing;
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

/// A conversation that is too long for the model has OpenAI's code, and begins as the API tells it:
/// the CLI says `Prompt is too long`, and where it could compact the conversation also how long.
inline void name_context_error(api_error& error) {
  const auto lower = text::to_lower(error.message);
  const auto holds = [&](std::string_view words) { return lower.find(words) != lower.npos; };
  const bool refused = error.kind == error_kind::invalid_request ||
                       error.kind == error_kind::too_large || error.kind == error_kind::bad_gateway;
  if (!refused || !(holds("prompt is too long") || holds("context limit"))) return;
  error.kind = error_kind::invalid_request;
  error.code = "context_length_exceeded";
  if (text::starts_with(error.message, "Prompt")) error.message[0] = 'p';
}

/// Told to clients and at the start.
constexpr const char* not_logged_in =
    "claude is not logged in; run `claude auth login` (or `make login`) as the user of this proxy, "
    "or start the proxy with ANTHROPIC_API_KEY set";

/// The version that the API wants in "Claude Code X does not support this model; version Y or newer
/// is required"; empty where it says no such thing.
inline std::string required_claude(std::string_view message) {
  const auto before = message.find(" or newer is required");
  if (before == message.npos || message.find("Claude Code") == message.npos) return {};
  const auto words = text::split(message.substr(0, before), ' ');
  return parse_version(words.back()) ? words.back() : "newer";
}

inline api_error upstream_error(std::int64_t status, std::string_view description) {
  if (description.find("/login") != std::string_view::npos && status == 0) {
    api_error error(error_kind::unavailable, not_logged_in, "not_logged_in");
    error.retry_is_futile = true;
    error.is_upstream = true;
    return error;
  }
  const auto message = upstream_message(description);
  api_error error(kind_of_upstream_status(status),
                  message.empty() ? "the API failed without a message" : message);
  error.is_upstream = true;
  error.retry_is_futile = error.kind == error_kind::billing;
  name_context_error(error);
  if (error.kind == error_kind::authentication) {
    error.message = "the API refused this proxy's own credentials: " + error.message;
    error.code = "upstream_authentication_failed";
  }
  if (!required_claude(error.message).empty()) {
    error.code = "claude_too_old";
    error.message += error.message.back() == '.' ? " " : ". ";
    error.message += "Update it: `claude update`, or `make run` again";
    error.retry_is_futile = true;
  }
  if (error.kind == error_kind::not_found) {
    error.code = "model_not_found";
    error.message += error.message.back() == '.' ? " " : ". ";
    error.message += "`sonnet`, `opus` and `haiku` name the newest models";
  }
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
  take(member_of(source, "output_tokens_details"), "thinking_tokens", usage.thinking);
  const auto& lifetimes = member_of(source, "cache_creation");
  take(lifetimes, "ephemeral_5m_input_tokens", usage.cache_write_5m);
  take(lifetimes, "ephemeral_1h_input_tokens", usage.cache_write_1h);
  if (source.is_object()) usage.api.update(source);
}

/// The CLI's own tool whose input is an answer that has to follow a schema.
constexpr const char* structured_tool = "StructuredOutput";

/// The client's tools under names that the API takes (`^[a-zA-Z0-9_-]{1,64}$`), and back. Beside
/// Claude Code's own tools they bear their server's prefix, since both may have a `Read`.
class tool_names {
 public:
  tool_names() = default;
  tool_names(const std::vector<tool_definition>& tools, std::string prefix)
      : prefix_(std::move(prefix)) {
    for (const auto& tool : tools) {
      if (clean(tool.name) == tool.name) add(tool.name, tool.name);
    }
    std::map<std::string, int> numbers;  // given already, by name
    for (const auto& tool : tools) {
      if (wire_.count(tool.name) > 0) continue;
      auto wire = clean(tool.name);
      for (auto& i = numbers[wire]; client_.count(wire) > 0;) {
        wire = clean(tool.name).substr(0, longest - 5) + "_" + std::to_string(++i + 1);
      }
      add(tool.name, wire);
    }
  }

  /// What the in-process server calls the tool.
  std::string to_wire(const std::string& name) const {
    const auto found = wire_.find(name);
    return found == wire_.end() ? clean(name) : found->second;
  }

  /// What the model calls it.
  std::string to_api(const std::string& name) const { return prefix_ + to_wire(name); }

  /// The client's name of what the model called; nullptr when it is no tool of the client's.
  const std::string* find_client(std::string_view api_name) const {
    if (!text::starts_with(api_name, prefix_)) return nullptr;
    const auto found = client_.find(std::string(api_name.substr(prefix_.size())));
    return found == client_.end() ? nullptr : &found->second;
  }

 private:
  static constexpr std::size_t longest = 64;

  /// The CLI's own tool, and what every object of its language has a member of that name for.
  static bool is_reserved(std::string_view name) {
    for (const char* one : {structured_tool, "constructor", "toString", "toLocaleString", "valueOf",
                            "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable"}) {
      if (name == one) return true;
    }
    return text::starts_with(name, "__");
  }

  static std::string clean(std::string_view name) {
    std::string wire(name.substr(0, longest));
    for (char& c : wire) {
      if (!text::is_alphanumeric(c, "-")) c = '_';
    }
    return wire.empty() || is_reserved(wire) ? "tool_" + wire.substr(0, longest - 5) : wire;
  }

  void add(const std::string& name, const std::string& wire) {
    wire_[name] = wire;
    client_[wire] = name;
  }

  std::string prefix_;
  std::map<std::string, std::string> wire_;    ///< by the client's name
  std::map<std::string, std::string> client_;  ///< by the wire's name
};

/// Cuts a text that comes in pieces at the first of some stop texts. What may be the beginning of
/// one is held back.
class stop_cutter {
 public:
  explicit stop_cutter(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// The stop text that was found; empty: none yet.
  const std::string& found() const { return found_; }

  /// Returns what can be sent now that there is more of the text.
  std::string feed(std::string more) {
    if (stops_.empty()) return more;
    held_ += more;
    auto end = held_.size();
    for (const auto& stop : stops_) {
      const auto at = held_.find(stop);
      if (at < end) std::tie(end, found_) = std::tie(at, stop);
    }
    if (!found_.empty()) return std::exchange(held_, {}).substr(0, end);
    for (const auto& stop : stops_) end = std::min(end, begin_of(stop));
    auto certain = held_.substr(0, end);
    held_.erase(0, end);
    return certain;
  }

  /// What was held back of a text that has ended.
  std::string flush() { return std::exchange(held_, {}); }

 private:
  /// Where the stop text begins that the text so far may end in.
  std::size_t begin_of(const std::string& stop) const {
    auto at = held_.size() - std::min(held_.size(), stop.size() - 1);
    while (held_.compare(at, held_.npos, stop, 0, held_.size() - at) != 0) ++at;
    return at;
  }

  std::vector<std::string> stops_;
  std::string held_;
  std::string found_;
};

/// What of a request decides how the lines of its answer are to be read.
struct answer_shape {
  tool_names names;
  bool structured = false;          ///< the answer is JSON by a schema
  std::string schema_field;         ///< where the client gave the schema
  bool streamed = false;            ///< false: of a structured answer only the accepted one is sent
  bool agent = false;               ///< Claude Code's own tools run meanwhile; the answer goes on
  bool shows_activity = false;      ///< and their activity is sent
  std::vector<std::string> cut_at;  ///< stop texts that the API does not get
  bool shows_thinking = true;
  bool searches = false;              ///< the API may search the web meanwhile
  std::vector<std::string> answered;  ///< ids of the calls whose results the client has brought
};

inline answer_shape make_answer_shape(const turn_request& request) {
  answer_shape shape;
  shape.names = tool_names(request.tools, request.agent ? "mcp__client__" : "");
  shape.structured = request.schema.has_value();
  shape.schema_field = request.schema_field;
  shape.streamed = request.stream;
  shape.agent = request.agent.has_value();
  shape.shows_activity = request.agent && request.agent->show_activity;
  shape.cut_at = request.sampling.cut_at;
  shape.shows_thinking = request.shows_thinking;
  shape.searches = !request.web.empty();
  if (request.messages.empty()) return shape;
  for (const auto& part : request.messages.back().parts) {
    const auto* result = std::get_if<tool_result_part>(&part);
    if (result != nullptr) shape.answered.push_back(result->call_id);
  }
  return shape;
}

/// One limit of a subscription: how much of it is used, and when it begins anew.
struct usage_window {
  std::string name;                   ///< `five_hour`, `seven_day`, `seven_day_opus`, ...
  std::string status;                 ///< `allowed`, `allowed_warning` or `rejected`
  std::optional<double> utilization;  ///< 0 to 1
  std::int64_t resets_at = 0;         ///< Unix seconds; 0: unknown
  bool extra_usage = false;           ///< the plan's part is used up: answers are billed beyond it
  std::int64_t noted_at = 0;          ///< Unix seconds, see `limit_board`
};

inline usage_window decode_usage_window(std::string name, const json& limit) {
  usage_window window{std::move(name), string_of(limit, "status"), {}, 0};
  window.resets_at = integer_of(limit, "resetsAt");
  // The second says so where the API does not refuse the plan's part in so many words.
  window.extra_usage = boolean_of(limit, "isUsingOverage") || boolean_of(limit, "overageInUse");
  const auto& share = member_of(limit, "utilization");
  if (!share.is_number()) return window;
  const auto value = share.get<double>();
  window.utilization = value > 1.5 ? value / 100 : value;  // in percent, as the version is
  return window;
}

/// The limits of which a line tells: a `rate_limit_event`, or the words of an answer that they
/// refuse. The one that counts comes last; newer versions tell the others' use beside it.
inline std::vector<usage_window> decode_usage_windows(const json& line) {
  const auto& failure = member_of(line, "api_error_params");
  const auto& limit = member_of(failure.is_object() ? failure : line, "rate_limit_info");
  const auto name = string_of(limit, "rateLimitType");
  if (name.empty()) return {};
  auto window = decode_usage_window(name, limit);
  std::vector<usage_window> windows;
  for (const auto& [other, told] : member_of(limit, "unifiedWindows").items()) {
    auto beside = decode_usage_window(other, told);
    if (other == name) window.utilization = beside.utilization;
    if (other != name) windows.push_back(std::move(beside));
  }
  windows.push_back(std::move(window));
  return windows;
}

/// What one turn has used and what it is charged, in tokens and USD. The API gives the output
/// tokens of a message at its end; until then they are estimated, rather too high.
class usage_meter {
 public:
  /// The CLI reports what its process has cost so far: `cost_before` is its latest report,
  /// `charged_before` what clients were charged that it has not reported yet.
  usage_meter(double cost_before, double charged_before)
      : cost_before_(cost_before), cost_(cost_before), charged_before_(charged_before) {}

  /// What the process has cost so far, as the CLI reported it.
  double cost() const { return cost_; }

  /// What this turn and those before it are charged beyond that.
  double charged_ahead() const { return total_.cost_usd ? 0 : charged_before_ + listed_; }

  /// The usage so far. The charge is the cost that the CLI reports, less what was charged for it
  /// already, and the list price where it reports none. Some versions count broken attempts in
  /// their cost and some do not: the higher sum is charged.
  token_usage usage() const {
    auto sum = total_;
    const auto open = open_usage();
    add_usage(sum, open);
    const double unfinished = broken_ + estimate_cost(model_, open);
    const double listed = charged_before_ + listed_ + unfinished;
    const double reported = total_.cost_usd.value_or(listed);
    sum.charge_usd = (unfinished > 0 ? std::max(reported, listed) : reported) - charged_before_;
    return sum;
  }

  bool message_open() const { return open_; }

  /// `streamed_before`: the message before was streamed; if it is open, the API broke it off.
  void begin_message(const std::string& model, const json& usage, bool streamed_before) {
    if (streamed_before) broken_ += estimate_cost(model_, open_usage());
    model_ = model;
    message_ = {};
    message_bytes_ = 0;
    message_thinking_ = 0;
    open_ = true;
    update(usage);
  }

  const token_usage& message() const { return message_; }
  void update(const json& usage) { read_usage(usage, message_); }
  void add_output(std::size_t bytes) { message_bytes_ += bytes; }
  void add_thinking(std::int64_t tokens) { message_thinking_ += tokens; }

  void complete_message() {
    if (!std::exchange(open_, false)) return;
    add_usage(total_, message_);
    listed_ += estimate_cost(model_, message_);
    thinking_ += message_thinking_;
  }

  /// Completes a message that we end: the API writes on, and charges, until it notices.
  void cut_message() {
    message_ = open_usage();
    complete_message();
    token_usage unseen;
    unseen.output = 64;  // half a second's
    broken_ += estimate_cost(model_, unseen);
  }

  /// A message that the CLI requested although its turn had been cut.
  void add_unrequested(const json& usage) {
    token_usage begun;
    read_usage(usage, begun);
    broken_ += estimate_cost(model_, begun);
  }

  void report_cost(double of_process) {
    cost_ = of_process;
    constexpr double precision = 1e12;  // the difference of sums must not show their rounding
    total_.cost_usd = std::round((cost_ - cost_before_) * precision) / precision;
  }

  /// The usage of the complete messages, at the end of the turn.
  const token_usage& finish() {
    if (total_.thinking == 0) total_.thinking = thinking_;
    return total_;
  }

 private:
  token_usage open_usage() const {
    if (!open_) return {};
    constexpr std::size_t bytes_of_token = 3;
    const auto written = static_cast<std::int64_t>(message_bytes_ / bytes_of_token);
    auto open = message_;
    open.output = std::max({open.output, written, message_thinking_});
    return open;
  }

  double cost_before_;
  double cost_;
  double charged_before_;
  double listed_ = 0;          ///< the list price of the complete messages of this turn
  double broken_ = 0;          ///< and of attempts that broke
  token_usage total_;          ///< of the complete messages
  std::int64_t thinking_ = 0;  ///< of these, as the CLI estimates it

  std::string model_;  ///< that writes the current message
  token_usage message_;
  std::size_t message_bytes_ = 0;
  std::int64_t message_thinking_ = 0;
  bool open_ = false;
};

/// A block of an answer: what the API sends, and what the client knows it by.
struct answer_block {
  block_kind kind = block_kind::text;
  std::string_view source;       ///< the kind of API delta that its text comes in
  bool hidden = false;           ///< not for the client
  std::size_t index = 0;         ///< the client's
  std::string id = {};           ///< of a tool call
  std::string name = {};         ///< of a tool, as the API calls it
  std::string client_name = {};  ///< empty: the client has no such tool
  std::string text = {};
  std::string signature = {};
  json citations = json::array();

  /// An answer in JSON: the input of a tool to the CLI, a text to the client.
  bool is_structured() const { return kind == block_kind::text && source == "tool_use"; }
};

/// Writes the blocks of one turn as events. When the API breaks off a message, the CLI requests it
/// again: blocks that were sent are then matched with those of the second attempt, and only what is
/// new is sent. A block is sent as stopped when the next one starts or its message is complete,
/// since the blocks of a broken attempt "stop" too.
class block_writer {
 public:
  using events = std::vector<event>;

  explicit block_writer(std::vector<std::string> stops)
      : stops_(std::move(stops)), cutter_(stops_) {}

  bool empty() const { return blocks_.empty(); }

  /// Ids of the client's tools that were called.
  const std::vector<std::string>& calls() const { return calls_; }

  /// The id under which the client knows a call: that of the first attempt.
  std::string client_call_id(const std::string& id) const {
    const auto found = aliases_.find(id);
    return found == aliases_.end() ? id : found->second;
  }

  /// The stop text that was found; empty: none yet.
  const std::string& stop_text() const { return cutter_.found(); }

  /// The block that is coming in; nullptr: none, or one of a kind that is skipped.
  answer_block* incoming() { return incoming_ ? &blocks_[*incoming_] : nullptr; }

  /// All of the incoming block was received that an earlier attempt sent.
  bool incoming_is_whole() const { return position_ == blocks_[*incoming_].text.size(); }

  /// All blocks of the message were received that an earlier attempt sent.
  bool message_is_whole() const { return next_ == blocks_.size(); }

  /// `separate`: the text of the next message is a paragraph of its own.
  void begin_message(bool separate) {
    first_ = blocks_.size();
    separate_ = separate;
  }

  void begin_attempt() {
    next_ = first_;
    incoming_.reset();
    api_index_ = -1;
  }

  /// Forgets a broken attempt, so that the next one need not match it.
  void forget_attempt(bool streamed, events& out) {
    if (blocks_.size() == first_) return;
    const auto shown =
        std::count_if(blocks_.begin() + static_cast<std::ptrdiff_t>(first_), blocks_.end(),
                      [](const auto& block) { return !block.hidden; });
    if (streamed && shown > 0) return;
    count_ -= static_cast<std::size_t>(shown);
    blocks_.resize(first_);
    calls_.clear();
    open_ = false;
    cutter_ = stop_cutter(stops_);
    if (shown > 0) out.emplace_back(attempt_broken{count_});
  }

  /// Follows the API's numbers of its blocks, which rise by one. False: out of order.
  bool follow_index(std::int64_t index, bool starts) {
    if (starts) ++api_index_;
    return index == api_index_;
  }

  /// The CLI writes no event for a block that tells a change of the model.
  void skip_index() { ++api_index_; }

  void end_incoming() { incoming_.reset(); }

  /// False: the block differs from that of an earlier attempt.
  bool add(answer_block fresh, events& out) {
    incoming_ = next_++;
    position_ = 0;
    if (*incoming_ < blocks_.size()) {
      auto& sent = blocks_[*incoming_];
      sent.citations = json::array();
      if (sent.kind == block_kind::tool_call) aliases_[fresh.id] = sent.id;
      return sent.kind == fresh.kind && sent.hidden == fresh.hidden && sent.name == fresh.name;
    }
    close(false, out);
    open_ = true;
    if (!fresh.hidden) fresh.index = count_++;
    blocks_.push_back(std::move(fresh));
    if (!blocks_.back().hidden) start(blocks_.back(), out);
    return true;
  }

  /// More text of the incoming block, if its text comes from `source`. False: it differs from that
  /// of an earlier attempt.
  bool append(std::string_view source, std::string more, events& out) {
    if (!incoming_ || more.empty() || source != blocks_[*incoming_].source) return true;
    auto& block = blocks_[*incoming_];
    const auto known = std::min(more.size(), block.text.size() - position_);
    if (block.text.compare(position_, known, more, 0, known) != 0) return false;
    position_ += more.size();
    if (known == more.size()) return true;
    if (!open_ || *incoming_ + 1 != blocks_.size()) return false;
    more.erase(0, known);
    block.text += more;
    if (block.hidden) return true;
    if (block.source == "text") more = cutter_.feed(std::move(more));
    if (!more.empty()) out.emplace_back(block_delta{block.index, std::move(more)});
    return true;
  }

  /// Sends the open block as stopped. A call without arguments comes without a byte of them, and so
  /// does an empty structured answer that was not `cut_short`.
  void close(bool cut_short, events& out) {
    if (!std::exchange(open_, false) || blocks_.back().hidden) return;
    const auto& last = blocks_.back();
    if (auto rest = cutter_.flush(); !rest.empty()) {
      out.emplace_back(block_delta{last.index, std::move(rest)});
    }
    const bool is_object = last.kind == block_kind::tool_call || last.kind == block_kind::search ||
                           (last.is_structured() && !cut_short);
    if (is_object && last.text.empty()) out.emplace_back(block_delta{last.index, "{}"});
    if (last.kind == block_kind::activity) out.emplace_back(block_delta{last.index, "\n"});
    out.emplace_back(block_stopped{last.index, last.signature, last.citations});
  }

  /// Sends a block of our own making. Only between messages.
  void send(block_kind kind, std::string words, events& out) {
    close(false, out);
    const auto index = count_++;
    out.emplace_back(block_started{index, kind, {}, {}});
    out.emplace_back(block_delta{index, std::move(words)});
    out.emplace_back(block_stopped{index, {}});
  }

  bool has_visible_text() const {
    return any([](const auto& block) {
      return block.kind == block_kind::text && !block.hidden && !block.text.empty();
    });
  }

  bool has_content() const {
    return any([](const auto& block) { return !block.text.empty() || block.is_structured(); });
  }

  /// More than thoughts and white space.
  bool has_words() const {
    return any([](const auto& block) {
      return !text::is_blank(block.text) && block.kind != block_kind::thinking &&
             block.kind != block_kind::redacted_thinking;
    });
  }

  /// Of a tool that there is not, or with an input that is no JSON object.
  bool has_wrong_call() const {
    return any([](const auto& block) {
      return block.kind == block_kind::tool_call &&
             (block.client_name.empty() ||
              !(text::is_blank(block.text) || try_parse_json(block.text).is_object()));
    });
  }

  /// The current message has a structured answer already.
  bool holds_structured() const {
    const auto end = blocks_.begin() + static_cast<std::ptrdiff_t>(std::min(next_, blocks_.size()));
    return std::any_of(blocks_.begin() + static_cast<std::ptrdiff_t>(first_), end,
                       [](const auto& block) { return block.is_structured(); });
  }

  /// The latest text block with any text; nullptr: none.
  const answer_block* last_text() const {
    return last(
        [](const auto& block) { return block.kind == block_kind::text && !block.text.empty(); });
  }

  /// The latest structured answer; nullptr: none.
  const answer_block* last_structured() const {
    return last([](const auto& block) { return block.is_structured(); });
  }

 private:
  template <typename Condition>
  bool any(Condition holds) const {
    return std::any_of(blocks_.begin(), blocks_.end(), holds);
  }

  template <typename Condition>
  const answer_block* last(Condition holds) const {
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), holds);
    return found == blocks_.rend() ? nullptr : &*found;
  }

  void start(const answer_block& block, events& out) {
    if (block.kind == block_kind::tool_call) calls_.push_back(block.id);
    if (block.kind == block_kind::tool_call || block.kind == block_kind::search) {
      const auto& name = block.client_name.empty() ? block.name : block.client_name;
      out.emplace_back(block_started{block.index, block.kind, block.id, name});
      return;
    }
    const bool joined = block.kind != block_kind::text || !separate_ || !has_visible_text();
    out.emplace_back(block_started{block.index, block.kind, {}, {}});
    if (block.kind == block_kind::activity) {
      out.emplace_back(block_delta{block.index, block.name + " "});
    }
    if (!joined) out.emplace_back(block_delta{block.index, "\n\n"});
  }

  std::vector<std::string> stops_;
  stop_cutter cutter_;
  std::vector<answer_block> blocks_;  ///< all blocks of the turn
  std::size_t count_ = 0;             ///< how many of them the client knows
  bool open_ = false;                 ///< the last of them was not sent as stopped
  bool separate_ = false;
  std::size_t first_ = 0;  ///< where the blocks of the current message begin
  std::size_t next_ = 0;   ///< where its next block goes
  std::optional<std::size_t> incoming_;
  std::int64_t api_index_ = -1;  ///< of the incoming block
  std::size_t position_ = 0;     ///< how much of it was received
  std::vector<std::string> calls_;
  std::map<std::string, std::string> aliases_;  ///< ids of calls, by their ids in a later attempt
};

/// The text of a message's or a tool result's content.
inline std::string content_text(const json& content) {
  if (content.is_string()) return content.get<std::string>();
  std::string joined;
  for (const auto& block : content) joined += string_of(block, "text");
  return joined;
}

inline stop_reason decode_stop_reason(const std::string& reason) {
  if (reason == "max_tokens" || reason == "model_context_window_exceeded") {
    return stop_reason::max_tokens;
  }
  if (reason == "stop_sequence") return stop_reason::stop_sequence;
  if (reason == "tool_use") return stop_reason::tool_use;
  if (reason == "refusal") return stop_reason::refusal;
  return stop_reason::end_turn;
}

/// The first error of a `result`; empty: it has none.
inline std::string first_error_of(const json& line) {
  const auto& errors = member_of(line, "errors");
  const bool some = errors.is_array() && !errors.empty() && errors[0].is_string();
  return some ? errors[0].get<std::string>() : std::string();
}

/// Why a `result` failed; never empty.
inline std::string failure_message(const json& line) {
  auto message = string_of(line, "result");
  if (message.empty()) message = first_error_of(line);
  if (text::starts_with(message, "[")) message.clear();  // the CLI's diagnosis of itself
  return message.empty() ? "claude ended with " + string_of(line, "subtype") : message;
}

inline api_error bad_answer(std::string message) {
  return api_error(error_kind::bad_gateway, std::move(message));
}

/// The model wrote no JSON that follows the schema; `last`: the last text it wrote, if any. Another
/// try would cost a whole answer again, so it is the client's to decide.
inline api_error schema_error(const std::string& problem, const answer_block* last) {
  constexpr std::size_t max_shown = 4'000;
  auto error = bad_answer(problem);
  if (last != nullptr) {
    error.message += "; its last answer: " + text::repair_utf8(last->text.substr(0, max_shown));
  }
  error.retry_is_futile = true;
  return error;
}

/// The message that is coming in, or came in last.
struct api_message {
  std::string id = {};
  bool streamed = false;
  json end = json::object();  ///< its end as the API wrote it
};

/// The answer that has to follow a schema: the input of the CLI's own tool.
struct structured_answer {
  std::string call_id = {};
  std::optional<bool> follows_schema = {};  ///< nullopt: the CLI has not checked it yet
};

/// Decodes the lines of one turn to events. Never throws; keeps the grammar whatever the lines are.
///
/// When the CLI requests a broken message again, its first attempt is forgotten if nothing of it
/// was sent. If something was, and the second attempt differs, the turn fails.
class turn_decoder {
 public:
  using events = std::vector<event>;

  /// For the two amounts see `usage_meter`.
  explicit turn_decoder(double cost_before = 0, answer_shape shape = {}, double charged_before = 0)
      : shape_(std::move(shape)), meter_(cost_before, charged_before), blocks_(shape_.cut_at) {}

  const usage_meter& meter() const { return meter_; }

  /// True once the turn has ended; later lines mean nothing.
  bool finished() const { return finished_; }

  /// True when the turn was ended before the CLI ended it: the CLI would call the API again (to go
  /// on after max_tokens, to argue with a refusal, to ask for words after an empty answer), so its
  /// process must not live on.
  bool was_cut() const { return cut_; }

  /// Ids of the client's tools that the turn ended with: the process waits for their results.
  const std::vector<std::string>& calls() const { return blocks_.calls(); }

  std::string client_call_id(const std::string& id) const { return blocks_.client_call_id(id); }

  void decode(const json& line, events& out) {
    if (was_cut()) add_unrequested(member_of(line, "event"));
    if (finished_ || !member_of(line, "parent_tool_use_id").is_null()) return;
    const auto type = string_of(line, "type");
    if (type == "stream_event") decode_stream_event(member_of(line, "event"), out);
    if (type == "assistant") decode_assistant(line, out);
    if (type == "user") decode_tool_results(line);
    // A message that was not streamed has no end of its own: the calls begin when it is complete.
    if (type == "control_request" && !message_.streamed && !calls().empty())
      end_message("tool_use", {}, out);
    if (type == "result") decode_result(line, out);
    if (type == "system") decode_system(line, out);
  }

  /// Ends the turn from outside: the process died, or a line was no JSON.
  void fail(api_error error, events& out) {
    if (finished_) return;
    finished_ = true;
    out.emplace_back(turn_failed{std::move(error)});
  }

 private:
  /// A retry further away than this is the client's to make, since it knows how long it may wait.
  static constexpr std::int64_t max_retry_ms = 5'000;

  void decode_stream_event(const json& line, events& out) {
    const auto type = string_of(line, "type");
    if (type == "message_start") {
      if (structured_.follows_schema == true) {
        finish_cut(out);
        return add_unrequested(line);
      }
      begin_message(member_of(line, "message"), true, out);
    }
    const bool starts = type == "content_block_start";
    if (starts || type == "content_block_delta") {
      if (!blocks_.follow_index(integer_of(line, "index"), starts)) {
        return fail(bad_answer("claude wrote the answer's blocks out of order"), out);
      }
      if (starts) return begin_block(member_of(line, "content_block"), out);
      decode_delta(member_of(line, "delta"), out);
    }
    if (type == "message_delta") {
      meter_.update(member_of(line, "usage"));
      const auto& delta = member_of(line, "delta");
      const auto reason = string_of(delta, "stop_reason");  // null when the CLI was interrupted
      if (reason.empty()) return;
      message_.end = delta;
      end_message(reason, string_of(delta, "stop_sequence"), out);
    }
  }

  void decode_delta(const json& delta, events& out) {
    const auto type = string_of(delta, "type");
    if (type == "text_delta") add_text("text", string_of(delta, "text"), out);
    if (type == "thinking_delta") add_text("thinking", string_of(delta, "thinking"), out);
    if (type == "input_json_delta") add_text("tool_use", string_of(delta, "partial_json"), out);
    auto* block = blocks_.incoming();
    if (block == nullptr) return;
    if (type == "signature_delta") block->signature = string_of(delta, "signature");
    if (type == "citations_delta") block->citations.push_back(member_of(delta, "citation"));
  }

  /// Whole blocks: decoded already when they were streamed; else this line is all that comes.
  void decode_assistant(const json& line, events& out) {
    const auto& message = member_of(line, "message");
    if (string_of(message, "model") == "<synthetic>") return;
    const auto id = string_of(message, "id");
    const auto& content = member_of(message, "content");
    if (id == message_.id && message_.streamed) {
      for (const auto& block : content) {
        if (string_of(block, "type") == "fallback") blocks_.skip_index();
      }
      return;
    }
    if (id != message_.id) begin_message(message, false, out);
    meter_.update(member_of(message, "usage"));
    if (!content.is_array()) return;
    for (const auto& block : content) decode_whole_block(block, out);
  }

  void decode_whole_block(const json& block, events& out) {
    begin_block(block, out);
    add_text("text", string_of(block, "text"), out);
    add_text("thinking", string_of(block, "thinking"), out);
    const auto& input = member_of(block, "input");
    if (input.is_object() && !input.empty()) add_text("tool_use", dump(input), out);
    auto* added = blocks_.incoming();
    if (added == nullptr) return;
    added->signature = string_of(block, "signature");
    const auto& citations = member_of(block, "citations");
    if (citations.is_array()) added->citations = citations;
  }

  /// What the CLI itself has answered to the tools that it runs.
  void decode_tool_results(const json& line) {
    const auto& content = member_of(member_of(line, "message"), "content");
    if (!content.is_array()) return;
    for (const auto& block : content) {
      if (string_of(block, "type") != "tool_result") continue;
      const auto id = string_of(block, "tool_use_id");
      if (shape_.structured && id == structured_.call_id) {
        structured_.follows_schema = !boolean_of(block, "is_error");
        continue;
      }
      const auto& own = shape_.answered;
      const bool foreign = std::find(own.begin(), own.end(), id) == own.end();
      if (foreign && shape_.shows_activity) {
        results_.push_back(content_text(member_of(block, "content")));
      }
    }
  }

  void decode_system(const json& line, events& out) {
    const auto subtype = string_of(line, "subtype");
    if (subtype == "api_retry") decode_retry(line, out);
    if (subtype == "thinking_tokens") {
      meter_.add_thinking(integer_of(line, "estimated_tokens_delta"));
    }
    // Older CLIs ask the model again after it has given a structured answer.
    const bool requests = subtype == "status" && string_of(line, "status") == "requesting";
    if (requests && structured_.follows_schema == true) finish_cut(out);
    if (subtype != "init" || !shape_.structured) return;
    const auto& tools = member_of(line, "tools");
    if (std::find(tools.begin(), tools.end(), structured_tool) != tools.end()) return;
    cut_ = true;  // the CLI drops a schema that it cannot compile, and would answer without it
    fail(bad_field(shape_.schema_field, "is not a JSON schema that answers can be held against"),
         out);
  }

  void decode_retry(const json& line, events& out) {
    const auto delay = integer_of(line, "retry_delay_ms");
    retry_after_ = std::chrono::milliseconds(delay);
    if (delay <= max_retry_ms) return;
    auto error = upstream_error(integer_of(line, "error_status"),
                                "the API asks to wait (" + string_of(line, "error") +
                                    "); try again in " + std::to_string(delay / 1000 + 1) + " s");
    error.retry_after = retry_after_;
    fail(std::move(error), out);
  }

  void decode_result(const json& line, events& out) {
    const auto& cost = member_of(line, "total_cost_usd");
    if (cost.is_number()) meter_.report_cost(cost.get<double>());
    const auto subtype = string_of(line, "subtype");
    const bool limited = subtype == "error_max_turns" || subtype == "error_max_budget_usd";
    if (limited && started_) return end_at_limit(line, out);
    if (boolean_of(line, "is_error") || subtype != "success") return decode_failure(line, out);
    if (!started_) {
      return fail(bad_answer("claude answered without the model: " + string_of(line, "result")),
                  out);
    }
    if (meter_.message_open()) end_message(string_of(line, "stop_reason"), {}, out);
    if (finished_) return;
    if (shape_.structured) return end_structured(member_of(line, "structured_output"), out);
    finish(out);
  }

  void decode_failure(const json& line, events& out) {
    const auto subtype = string_of(line, "subtype");
    const auto message = failure_message(line);
    if (subtype == "error_max_structured_output_retries")
      return fail(schema_error(message, blocks_.last_text()), out);
    auto error = upstream_error(integer_of(line, "api_error_status"), message);
    error.retry_after = retry_after_;
    // A refusal that the CLI does not retry is one whose Retry-After is over a minute.
    const bool refused =
        error.kind == error_kind::rate_limited || error.kind == error_kind::overloaded;
    if (refused && !retry_after_) error.retry_after = std::chrono::minutes(1);
    fail(std::move(error), out);
  }

  /// The agent ran out of turns or money: its text stands, and ends with the reason.
  void end_at_limit(const json& line, events& out) {
    meter_.complete_message();
    cut_ = true;
    reason_ = stop_reason::turn_limit;
    auto why = first_error_of(line);
    if (why.empty()) why = string_of(line, "subtype");
    const char* seam = blocks_.has_visible_text() ? "\n\n[" : "[";
    if (!shape_.structured) blocks_.send(block_kind::text, seam + why + "]", out);
    finish(out);
  }

  void end_structured(const json& answer, events& out) {
    if (answer.is_null()) {
      const auto* problem = "the model did not answer in the JSON that was asked for";
      return fail(schema_error(problem, blocks_.last_text()), out);
    }
    if (!shape_.streamed) blocks_.send(block_kind::text, dump(answer), out);
    reason_ = stop_reason::end_turn;
    finish(out);
  }

  /// The CLI has called the API again although the turn was cut, and that costs.
  void add_unrequested(const json& line) {
    if (string_of(line, "type") != "message_start") return;
    meter_.add_unrequested(member_of(member_of(line, "message"), "usage"));
  }

  /// A structured answer was accepted, and the CLI goes on all the same.
  void finish_cut(events& out) {
    cut_ = true;
    const auto* last = blocks_.last_structured();
    const auto answer = try_parse_json(last == nullptr      ? ""
                                       : last->text.empty() ? std::string("{}")
                                                            : last->text);
    end_structured(answer.is_discarded() ? json() : answer, out);
  }

  void begin_message(const json& message, bool streamed, events& out) {
    const bool goes_on = started_ && !meter_.message_open();
    if (!goes_on) blocks_.forget_attempt(shape_.streamed, out);
    message_.id = string_of(message, "id");
    const auto model = string_of(message, "model");
    meter_.begin_message(model, member_of(message, "usage"), message_.streamed);
    message_.streamed = streamed;
    message_.end = json::object();
    if (!started_) out.emplace_back(turn_started{model, meter_.message()});
    started_ = true;
    if (goes_on || blocks_.empty()) send_results(out);
    if (goes_on) blocks_.begin_message(reason_ != stop_reason::max_tokens);
    blocks_.begin_attempt();
  }

  /// A block of a kind that no dialect has is skipped with its deltas.
  void begin_block(const json& block, events& out) {
    complete_block(out);
    blocks_.end_incoming();
    const auto type = string_of(block, "type");
    if (finished_ || !meter_.message_open()) return;
    if (type == "text") add_block({block_kind::text, "text", shape_.structured}, block, out);
    const bool hidden = !shape_.shows_thinking;
    if (type == "thinking") add_block({block_kind::thinking, "thinking", hidden}, block, out);
    if (type == "redacted_thinking") {
      add_block({block_kind::redacted_thinking, "data", hidden}, block, out);
      add_text("data", string_of(block, "data"), out);
    }
    if (type == "tool_use") begin_tool(block, out);
    if (!shape_.searches) return;
    if (type == "server_tool_use") add_block({block_kind::search, "tool_use"}, block, out);
    if (text::ends_with(type, "_tool_result")) {
      add_block({block_kind::found, "data"}, block, out);
      if (!finished_ && !blocks_.append("data", dump(block), out)) fail_diverged(out);
    }
  }

  /// A call is the client's to answer, unless it is a tool of the process's own.
  void begin_tool(const json& block, events& out) {
    const auto name = string_of(block, "name");
    if (shape_.structured && name == structured_tool) {
      const bool refused = structured_.follows_schema == false;
      if (shape_.streamed && (refused || blocks_.holds_structured())) {
        cut_ = true;
        return fail(
            bad_answer("the model's answer does not follow the schema; ask again, or without "
                       "a stream, where only an answer that follows it is sent"),
            out);
      }
      structured_.call_id = string_of(block, "id");
      return add_block({block_kind::text, "tool_use", !shape_.streamed}, block, out);
    }
    if (shape_.agent && shape_.names.find_client(name) == nullptr) {
      return add_block({block_kind::activity, "tool_use", !shape_.shows_activity}, block, out);
    }
    add_block({block_kind::tool_call, "tool_use", false}, block, out);
  }

  void add_block(answer_block fresh, const json& block, events& out) {
    fresh.id = string_of(block, "id");
    fresh.name = string_of(block, "name");
    const auto* client_name = shape_.names.find_client(fresh.name);
    if (client_name != nullptr) fresh.client_name = *client_name;
    if (!blocks_.add(std::move(fresh), out)) fail_diverged(out);
  }

  void add_text(std::string_view source, std::string more, events& out) {
    if (finished_) return;
    meter_.add_output(more.size());
    if (!blocks_.append(source, std::move(more), out)) return fail_diverged(out);
    if (!blocks_.stop_text().empty()) end_at_stop(out);
  }

  void end_at_stop(events& out) {
    meter_.cut_message();
    reason_ = calls().empty() ? stop_reason::stop_sequence : stop_reason::tool_use;
    if (calls().empty()) stop_sequence_ = blocks_.stop_text();
    cut_ = true;
    finish(out);
  }

  /// JSON that the model wrote must be safe to parse.
  void complete_block(events& out) {
    const auto* block = blocks_.incoming();
    if (finished_ || block == nullptr) return;
    if (!blocks_.incoming_is_whole()) return fail_diverged(out);
    if (block->source != "tool_use") return;
    try {
      check_json_bounds(block->text);
    } catch (const api_error& bounds) {
      cut_ = true;
      auto error = bad_answer("the model's answer is refused: " + bounds.message);
      error.retry_is_futile = true;
      fail(std::move(error), out);
    }
  }

  void send_results(events& out) {
    for (auto& result : results_) blocks_.send(block_kind::activity, result + "\n", out);
    results_.clear();
  }

  void end_message(const std::string& reason, const std::string& stop_sequence, events& out) {
    complete_block(out);
    if (finished_ || !meter_.message_open()) return;
    if (!blocks_.message_is_whole()) return fail_diverged(out);
    reason_ = decode_stop_reason(reason);
    blocks_.close(is_cut_short(), out);
    meter_.complete_message();
    stop_sequence_ = stop_sequence;
    if (!calls().empty() && !is_cut_short()) {
      reason_ = stop_reason::tool_use;  // a stop sequence within the arguments is sent as such
      cut_ = blocks_.has_wrong_call();  // the CLI itself would tell the model
      return finish(out);
    }
    cut_ = goes_on_unrequested();
    if (!cut_) return;
    if (shape_.structured && !is_cut_short()) return end_structured({}, out);  // it wrote nothing
    finish(out);
  }

  bool is_cut_short() const {
    return reason_ == stop_reason::max_tokens || reason_ == stop_reason::refusal;
  }

  /// The CLI would call the API again, for something that no client requested.
  bool goes_on_unrequested() const {
    if (reason_ == stop_reason::refusal) return true;
    if (shape_.agent) return false;
    if (reason_ == stop_reason::max_tokens || !blocks_.has_content()) return true;
    if (shape_.structured) return false;  // it asks for the JSON then
    return !blocks_.has_words() || reason_ == stop_reason::tool_use;
  }

  void finish(events& out) {
    blocks_.close(is_cut_short(), out);
    send_results(out);
    finished_ = true;
    if (reason_ == stop_reason::tool_use && calls().empty()) reason_ = stop_reason::end_turn;
    if (decode_stop_reason(string_of(message_.end, "stop_reason")) != reason_)
      message_.end = json::object();
    out.emplace_back(
        turn_stopped{reason_, stop_sequence_, meter_.finish(), std::move(message_.end)});
  }

  void fail_diverged(events& out) {
    fail(
        bad_answer("the connection to the API broke within the answer, and the API's second answer "
                   "differs from what was already sent"),
        out);
  }

  answer_shape shape_;
  usage_meter meter_;
  block_writer blocks_;
  bool started_ = false;
  bool finished_ = false;
  bool cut_ = false;
  api_message message_;
  stop_reason reason_ = stop_reason::end_turn;
  std::string stop_sequence_;
  std::optional<std::chrono::milliseconds> retry_after_;
  structured_answer structured_;
  std::vector<std::string> results_;  ///< of the agent's tools, to be sent after this message
};

inline std::string encode_control_request(const std::string& id, const char* subtype,
                                          const json& more = json::object()) {
  json request = json::object({{"subtype", subtype}});
  request.update(more);
  return dump(json::object(
             {{"type", "control_request"}, {"request_id", id}, {"request", request}})) +
         '\n';
}

/// The answer to a request of the process's.
inline std::string encode_control_response(const json& asked, const char* subtype, const char* key,
                                           const json& value) {
  const auto response = json::object(
      {{"subtype", subtype}, {"request_id", string_of(asked, "request_id")}, {key, value}});
  return dump(json::object({{"type", "control_response"}, {"response", response}})) + '\n';
}

/// The in-process server by which a process knows the client's tools.
constexpr const char* tool_server = "client";

/// What a schema's keywords hold, as far as the CLI's validator knows them (JSON Schema, draft 7).
enum class keyword_kind { value, schema, schemas, map, unknown };

inline keyword_kind kind_of_keyword(std::string_view name) {
  constexpr std::array<std::string_view, 9> one = {
      "additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else",
      "additionalItems"};
  constexpr std::array<std::string_view, 3> list = {"allOf", "anyOf", "oneOf"};
  constexpr std::array<std::string_view, 4> map = {"properties", "patternProperties", "definitions",
                                                   "$defs"};
  constexpr std::array<std::string_view, 21> plain = {
      "$ref",         "type",        "enum",        "const",    "title",
      "default",      "description", "examples",    "required", "minimum",
      "maximum",      "multipleOf",  "uniqueItems", "pattern",  "exclusiveMinimum",
      "minLength",    "maxLength",   "minItems",    "maxItems", "exclusiveMaximum",
      "minProperties"};
  const auto holds = [&](const auto& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (holds(one)) return keyword_kind::schema;
  if (holds(list)) return keyword_kind::schemas;
  if (holds(map)) return keyword_kind::map;
  return holds(plain) || name == "maxProperties" ? keyword_kind::value : keyword_kind::unknown;
}

/// An answer's schema in the words of draft 7, which the CLI's validator knows: for one keyword of
/// another draft it would drop the whole schema without a word. What answers cannot be held against
/// is left out, and described to the model if it is short.
class schema_encoder {
 public:
  /// `for_api`: tuples stay as draft 2020-12 has them, since the API takes no others.
  explicit schema_encoder(bool for_api) : for_api_(for_api) {}

  json encode_root(const json& root) {
    root_ = &root;
    note_names(root, "#");
    json known = encode(root, true);
    for (std::size_t i = 0; i < used_.size(); ++i) {  // encoding one may use another
      json schema = encode(*named_.at(used_[i]).schema);
      if (!known["$defs"].is_object()) known["$defs"] = json::object();
      known["$defs"]["ref_" + std::to_string(i)] = std::move(schema);
    }
    return known;
  }

 private:
  struct named_schema {
    const json* schema;
    bool is_root;
  };

  /// Draft 7 has names for schemas, too, but its validator resolves them against addresses.
  void note_names(const json& schema, std::string_view place = {}) {
    if (!schema.is_structured()) return;
    const bool is_root = !place.empty();
    for (const char* name : {"$id", "$anchor", "$dynamicAnchor"}) {
      const auto value = string_of(schema, name);
      const bool is_id = std::string_view(name) == "$id";
      if (!value.empty()) named_.insert({is_id ? value : "#" + value, {&schema, is_root}});
    }
    for (const auto& member : schema) note_names(member);
  }

  /// A reference to a definition stays; one by name, or by a place that may move, becomes one.
  std::string encode_reference(const std::string& target) {
    const bool moves = text::starts_with(target, "#/") && target.find('~') == std::string::npos &&
                       std::count(target.begin(), target.end(), '/') > 2;
    const json::json_pointer place(moves ? target.substr(1) : std::string());
    if (moves && root_->contains(place)) named_.insert({target, {&root_->at(place), false}});
    const auto found = named_.find(target);
    if (found == named_.end()) return target;
    if (found->second.is_root) return "#";
    const auto known = std::find(used_.begin(), used_.end(), target);
    const auto index = known - used_.begin();
    if (known == used_.end()) used_.push_back(target);
    return "#/$defs/ref_" + std::to_string(index);
  }

  json encode(const json& schema, bool is_root = false) {
    if (schema.is_array()) {
      json each = json::array();
      for (const auto& one : schema) each.push_back(encode(one));
      return each;
    }
    if (!schema.is_object()) return schema;
    json known = json::object();
    for (const auto& [name, value] : schema.items()) encode_member(name, value, known);
    encode_tuple(schema, known);
    for (const char* name : {"dependentRequired", "dependentSchemas", "dependencies"}) {
      const auto& needs = member_of(schema, name);
      if (needs.is_object()) encode_dependencies(needs, known);
    }
    if (member_of(schema, "minContains") == 0) known.erase("contains");
    tell_rest(schema, known);
    if (!is_root && known.size() > 1 && known.contains("$ref")) {  // draft 7 reads it alone
      if (!member_of(known, "allOf").is_array()) known["allOf"] = json::array();
      known["allOf"].push_back(json::object({{"$ref", known["$ref"]}}));
      known.erase("$ref");
    }
    if (boolean_of(schema, "nullable") && !is_root) allow_null(known);
    return known;
  }

  void encode_dependencies(const json& needs, json& known) {
    if (!member_of(known, "allOf").is_array()) known["allOf"] = json::array();
    for (const auto& [member, needed] : needs.items()) {
      const json then = needed.is_array() ? json::object({{"required", needed}}) : encode(needed);
      const json has = json::object({{"required", json::array({member})}});
      known["allOf"].push_back(json::object({{"if", has}, {"then", then}}));
    }
  }

  void encode_member(const std::string& name, const json& value, json& known) {
    const bool refers = name == "$ref" || name == "$dynamicRef" || name == "$recursiveRef";
    if (refers && value.is_string()) {
      known["$ref"] = encode_reference(value.get<std::string>());
      return;
    }
    switch (kind_of_keyword(name)) {
      case keyword_kind::value: known[name] = value; break;
      case keyword_kind::schema:
      case keyword_kind::schemas: known[name] = encode(value); break;
      case keyword_kind::map:
        if (!known.contains(name)) known[name] = json::object();
        for (const auto& [key, one] : value.items()) known[name][key] = encode(one);
        break;
      case keyword_kind::unknown: break;
    }
  }

  /// The first elements of an array by a schema each, and the rest by another.
  void encode_tuple(const json& schema, json& known) {
    const bool new_words = member_of(schema, "prefixItems").is_array();
    const auto& first = member_of(schema, new_words ? "prefixItems" : "items");
    if (!first.is_array()) return;
    const auto& rest = member_of(schema, new_words ? "items" : "additionalItems");
    for (const char* name : {"items", "additionalItems"}) known.erase(name);
    known[for_api_ ? "prefixItems" : "items"] = encode(first);
    if (!rest.is_null()) known[for_api_ ? "items" : "additionalItems"] = encode(rest);
  }

  /// As OpenAPI means it.
  static void allow_null(json& known) {
    const auto type = known.find("type");
    if (type == known.end() || known.contains("const") || known.contains("allOf")) {
      known = json::object({{"anyOf", json::array({known, json::object({{"type", "null"}})})}});
      return;
    }
    if (!type->is_array()) *type = json::array({*type});
    type->push_back("null");
    if (member_of(known, "enum").is_array()) known["enum"].push_back(nullptr);
  }

  static void tell_rest(const json& schema, json& known) {
    for (const char* name :
         {"format", "minContains", "maxContains", "contentEncoding", "contentMediaType"}) {
      const auto& value = member_of(schema, name);
      if (value.is_null() || value.is_structured()) continue;
      const auto words = value.is_string() ? value.get<std::string>() : dump(value);
      const auto own = string_of(known, "description");
      known["description"] = (own.empty() ? "(" : own + " (") + name + ": " + words + ")";
    }
  }

  bool for_api_;
  const json* root_ = nullptr;
  std::map<std::string, named_schema> named_;
  std::vector<std::string> used_;  ///< names that were referred to
};

inline json encode_schema(const json& schema, bool for_api = false) {
  return schema_encoder(for_api).encode_root(schema);
}

/// Gives a fresh process what its conversation is about: the system prompt, in place of Claude
/// Code's own or after it, the client's tools and the schema of the answers.
inline std::string encode_initialize(const std::string& id, const turn_request& request) {
  json wanted = json::object();
  if (!request.agent) {
    wanted["systemPrompt"] = json::array({request.system});
  } else if (!request.system.empty()) {
    wanted["appendSystemPrompt"] = request.system;
  }
  if (!request.tools.empty()) wanted["sdkMcpServers"] = json::array({tool_server});
  if (request.schema) wanted["jsonSchema"] = encode_schema(*request.schema);
  return encode_control_request(id, "initialize", wanted);
}

/// The client's choice of tools as the API takes it; null when it has none.
inline json encode_tool_choice(const turn_request& request, const tool_names& names) {
  json choice;
  switch (request.choice.kind) {
    case tool_choice::how::automatic:
      if (!request.choice.parallel) choice = json::object({{"type", "auto"}});
      break;
    case tool_choice::how::none: return json::object({{"type", "none"}});
    case tool_choice::how::any: choice = json::object({{"type", "any"}}); break;
    case tool_choice::how::named:
      choice = json::object({{"type", "tool"}, {"name", names.to_api(request.choice.name)}});
  }
  if (!choice.is_null() && !request.choice.parallel) choice["disable_parallel_tool_use"] = true;
  return choice;
}

/// The client's tools word for word and in its order. As the in-process server lists them, the CLI
/// would sort them, and cut each description at its first empty line (with `--bare`) or at 2,048
/// characters.
inline json encode_offered_tools(const turn_request& request, const tool_names& names) {
  json offered = json::array();
  const auto& allowed = request.choice.allowed;
  for (const auto& tool : request.tools) {
    const bool offers = std::find(allowed.begin(), allowed.end(), tool.name) != allowed.end();
    if (!allowed.empty() && !offers) continue;
    offered.push_back(json::object({{"name", names.to_api(tool.name)},
                                    {"description", tool.description},
                                    {"input_schema", tool.schema}}));
    offered.back().update(tool.more);
  }
  for (const auto& tool : request.web) {
    const auto name = string_of(tool, "name");
    const bool offers = std::find(allowed.begin(), allowed.end(), name) != allowed.end();
    if (allowed.empty() || offers) offered.push_back(tool);
  }
  if (request.schema) {
    offered.push_back(json::object({{"name", structured_tool},
                                    {"description", "Return the final response as structured JSON"},
                                    {"input_schema", encode_schema(*request.schema, true)}}));
  }
  return offered;
}

/// What goes into the top level of the API's body as it is. A structured answer is asked for as a
/// tool that must be called, where the API lets a tool be forced: not while the model thinks.
inline json encode_body(const turn_request& request, const tool_names& names) {
  const auto& sampling = request.sampling;
  json body = json::object();
  if (sampling.temperature) body["temperature"] = *sampling.temperature;
  if (sampling.top_p) body["top_p"] = *sampling.top_p;
  if (sampling.top_k) body["top_k"] = *sampling.top_k;
  if (sampling.max_tokens) body["max_tokens"] = *sampling.max_tokens;
  if (!sampling.stop.empty()) body["stop_sequences"] = sampling.stop;
  const bool has_tools = !request.tools.empty() || !request.web.empty();
  json choice = has_tools ? encode_tool_choice(request, names) : json();
  const bool no_calls = !has_tools || request.choice.kind == tool_choice::how::none;
  if (request.schema && no_calls) {
    choice = json();
    if (!request.thinks) choice = json::object({{"type", "tool"}, {"name", structured_tool}});
  }
  if (!choice.is_null()) body["tool_choice"] = choice;
  // The CLI would give the API the words of draft 7.
  const bool differs =
      request.schema && encode_schema(*request.schema, true) != encode_schema(*request.schema);
  const bool offers = differs || has_tools;
  if (offers && !request.agent) {  // an agent has the CLI's own ones as well
    body["tools"] = encode_offered_tools(request, names);
  }
  return body;
}

/// Without settings it changes nothing, and the answer proves that the process is up.
inline std::string encode_probe(const std::string& id, const json& settings = json::object()) {
  return encode_control_request(id, "apply_flag_settings", json::object({{"settings", settings}}));
}

/// Gives a process the wishes of its next turn, in place of the last one's.
inline std::string encode_settings(const std::string& id, const turn_request& request,
                                   const tool_names& names) {
  json settings = json::object(
      {{"env", json::object({{"CLAUDE_CODE_EXTRA_BODY", dump(encode_body(request, names))}})}});
  if (request.effort != reasoning_effort::none) {
    const bool least = request.effort == reasoning_effort::minimal;  // the CLI begins with low
    settings["effortLevel"] = least ? "low" : name_of(request.effort);
  }
  // A setting stays until it is sent anew; null takes it back.
  settings["showThinkingSummaries"] = request.thinks;
  settings["promptCacheTtl"] = request.cache_ttl.empty() ? json() : json(request.cache_ttl);
  return encode_probe(id, settings);
}

inline std::string encode_thinking(const std::string& id, std::int64_t tokens) {
  return encode_control_request(id, "set_max_thinking_tokens",
                                json::object({{"max_thinking_tokens", tokens}}));
}

/// Bytes of a tool's result that the CLI passes on whole; of larger ones it keeps the text in a
/// file and tells the model so.
constexpr std::size_t max_tool_result = 400'000;

/// The CLI cuts longer descriptions without a word (at 2,048 characters up to 2.1.197). What is
/// more goes into the description of the schema, which it does not touch.
inline void spread_description(std::string description, json& schema, json& tool) {
  constexpr std::size_t longest = 2000;
  if (description.size() > longest) {
    auto cut = longest;
    while (cut > 0 && (static_cast<unsigned char>(description[cut]) & 0xC0U) == 0x80U) --cut;
    auto rest = description.substr(cut);
    const auto own = string_of(schema, "description");
    schema["description"] = own.empty() ? rest : rest + "\n\n" + own;
    description.resize(cut);
    description += " [continued in the description of the input schema]";
  }
  tool["description"] = description;
}

/// The client's tools, as the in-process server lists them. Read-only, so that the process calls
/// all of a message's tools at once instead of one by one.
inline json encode_tools(const std::vector<tool_definition>& tools, const tool_names& names) {
  json listed = json::array();
  for (const auto& tool : tools) {
    json schema = tool.schema;
    json shown = json::object({{"name", names.to_wire(tool.name)}});
    spread_description(tool.description, schema, shown);
    shown["inputSchema"] = std::move(schema);
    shown["annotations"] = json::object({{"readOnlyHint", true}});
    shown["_meta"] = json::object({{"anthropic/maxResultSizeChars", max_tool_result}});
    listed.push_back(std::move(shown));
  }
  return json::object({{"tools", listed}});
}

/// A tool's answer in the Model Context Protocol's form, which knows no URLs.
inline json encode_tool_result(const tool_result_part& result) {
  json content = json::array();
  for (const auto& part : result.content) {
    if (const auto* plain = std::get_if<text_part>(&part)) {
      content.push_back(json::object({{"type", "text"}, {"text", plain->text}}));
    } else if (const auto* media = std::get_if<media_part>(&part)) {
      content.push_back(json::object(
          {{"type", "image"}, {"data", media->data}, {"mimeType", media->media_type}}));
    }
  }
  json encoded = json::object({{"content", content}});
  if (result.is_error) encoded["isError"] = true;
  return encoded;
}

/// The in-process server's answer to one of its requests: `{request_id, request: {message}}`.
inline std::string encode_mcp_reply(const json& asked, const json& result) {
  const auto& message = member_of(member_of(asked, "request"), "message");
  const json reply =
      json::object({{"jsonrpc", "2.0"},
                    {"id", member_of(message, "id").is_null() ? json(0) : member_of(message, "id")},
                    {"result", result}});
  return encode_control_response(asked, "success", "response",
                                 json::object({{"mcp_response", reply}}));
}

/// Ends the answer under way; `claude` then tells its `result`.
inline std::string encode_interrupt(const std::string& id) {
  return encode_control_request(id, "interrupt");
}

/// Takes the conversation back to before the last of the user's messages, which that must be; the
/// answer says whether it was `rewound`. Seen from 2.1.260 on; 2.1.197 refuses it for the first.
inline std::string encode_rewind(const std::string& id, const std::string& uuid) {
  return encode_control_request(id, "rewind_conversation",
                                json::object({{"target_message_uuid", uuid}}));
}

/// A content block as the API is to see it: with names that it takes.
inline json encode_part(const content_part& part, const tool_names& names) {
  json block = render_part(part);
  if (const auto* call = std::get_if<tool_call_part>(&part)) {
    block["name"] = names.to_api(call->name);
  }
  if (const auto* result = std::get_if<tool_result_part>(&part); result && result->is_error) {
    std::vector<std::string> words;  // one text, as the CLI has a failure that a process waits for
    for (const auto& piece : result->content) {
      if (const auto* plain = std::get_if<text_part>(&piece)) words.push_back(plain->text);
    }
    const bool text_alone = !words.empty() && words.size() == result->content.size();
    if (text_alone) block["content"] = text::join(words, "\n");
  }
  return block;
}

/// A user's last text that begins with '/' would be run as a command of Claude Code's (`/clear`,
/// `/cost`) instead of being asked. A blank in front of it keeps it a text.
inline void shield_slash_command(json& content) {
  for (auto block = content.rbegin(); block != content.rend(); ++block) {
    if (string_of(*block, "type") != "text") continue;
    const auto words = string_of(*block, "text");
    if (text::starts_with(words, "/")) (*block)["text"] = " " + words;
    return;
  }
}

/// The API refuses such a text beside what is none.
inline bool is_blank(const content_part& part) {
  const auto* plain = std::get_if<text_part>(&part);
  return plain != nullptr && text::trim(plain->text).empty();
}

struct message_line {
  bool ask = true;     ///< the model answers; others are only remembered: a `result` acknowledges
  std::string uuid;    ///< of a user's, by which it can be taken back; a process's own
  std::size_t number;  ///< its own: `claude` takes assistant lines of one id for one message
  std::string model;   ///< the API's id of the process's: `claude` drops the thoughts of any other
};

inline std::string encode_message(const message& entry, const tool_names& names,
                                  const message_line& how) {
  json content = json::array();
  const bool all_blank = std::all_of(entry.parts.begin(), entry.parts.end(), is_blank);
  for (const auto& part : entry.parts) {
    if (all_blank || !is_blank(part)) content.push_back(encode_part(part, names));
  }
  const bool from_user = entry.author == role::user;
  if (from_user) shield_slash_command(content);
  const char* author = from_user ? "user" : "assistant";
  json rendered = json::object({{"role", author}, {"content", std::move(content)}});
  if (!from_user) rendered["id"] = "msg_past_" + std::to_string(how.number);
  if (!from_user && !how.model.empty()) rendered["model"] = how.model;
  json line = json::object({{"type", author},
                            {"message", std::move(rendered)},
                            {"parent_tool_use_id", json()},
                            {"session_id", ""}});
  if (from_user && !how.uuid.empty()) line["uuid"] = how.uuid;
  if (from_user && !how.ask) line["shouldQuery"] = false;
  return dump(line) + '\n';
}

//================================================================================================
// [17] cli_command - how `claude` is started
// uses: text, options, conversation | pure
//================================================================================================

/// What is fixed when a process starts and cannot be changed after: the key of a spare.
struct launch_profile {
  std::string model;
  std::optional<agent_request> agent = {};
  bool fallback = false;  ///< by the account that answers while the plan is used up

  bool operator==(const launch_profile& other) const {
    return model == other.model && fallback == other.fallback && words() == other.words();
  }

 private:
  std::string words() const {
    std::string joined;
    if (agent) append_agent(joined, *agent);
    return joined;
  }
};

struct command {
  std::vector<std::string> arguments;  ///< the program's path first
  environment_map environment;
  std::string working_directory;
  /// Secrets, each of which it may read once, from the descriptors 3, 4, …: no file, no variable
  /// and no argument holds them, and what has been read is gone.
  std::vector<std::string> inherited = {};

  /// Hands one more over, and returns the number of its descriptor.
  std::string inherit(std::string secret) {
    inherited.push_back(std::move(secret));
    return std::to_string(2 + inherited.size());
  }
};

/// The variables' names or prefixes (ending in '*') that every `claude` may have.
constexpr std::array<std::string_view, 26> common_variables = {"HOME",
                                                               "PATH",
                                                               "USER",
                                                               "LOGNAME",
                                                               "SHELL",
                                                               "LANG",
                                                               "LC_*",
                                                               "TZ",
                                                               "TMPDIR",
                                                               "XDG_*",
                                                               "HTTP_PROXY",
                                                               "HTTPS_PROXY",
                                                               "NO_PROXY",
                                                               "http_proxy",
                                                               "https_proxy",
                                                               "no_proxy",
                                                               "ALL_PROXY",
                                                               "all_proxy",
                                                               "SSL_CERT_FILE",
                                                               "SSL_CERT_DIR",
                                                               "NODE_EXTRA_CA_CERTS",
                                                               "CLAUDE_CONFIG_DIR",
                                                               "CLAUDE_CODE_GIT_BASH_PATH",
                                                               "CLAUDE_CODE_CLIENT_CERT",
                                                               "CLAUDE_CODE_CLIENT_KEY",
                                                               "ANTHROPIC_CUSTOM_HEADERS"};

/// What one auth method needs beside them, and no other gets.
inline std::vector<std::string_view> variables_of(auth_method method) {
  switch (method) {
    case auth_method::api_key:
      return {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"};
    case auth_method::bedrock:
      return {"AWS_*", "ANTHROPIC_BEDROCK_BASE_URL", "CLAUDE_CODE_SKIP_BEDROCK_AUTH",
              "ANTHROPIC_SMALL_FAST_MODEL*", "ANTHROPIC_DEFAULT_*"};
    case auth_method::vertex:
      return {"ANTHROPIC_VERTEX_*",
              "CLOUD_ML_REGION",
              "VERTEX_REGION_*",
              "GOOGLE_*",
              "GCLOUD_*",
              "CLOUDSDK_*",
              "CLAUDE_CODE_SKIP_VERTEX_AUTH",
              "ANTHROPIC_SMALL_FAST_MODEL*",
              "ANTHROPIC_DEFAULT_*"};
    case auth_method::cli:
    case auth_method::detect: return {"CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL"};
  }
  return {};
}

/// The variable that moves the API to another address.
inline const char* address_variable(auth_method method) {
  return method == auth_method::bedrock  ? "ANTHROPIC_BEDROCK_BASE_URL"
         : method == auth_method::vertex ? "ANTHROPIC_VERTEX_BASE_URL"
                                         : "ANTHROPIC_BASE_URL";
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

/// Of the variables that we set, those that would make an agent worse.
constexpr std::array<const char*, 2> tool_less_variables = {"DISABLE_COMPACT",
                                                            "CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE"};

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
  // A relative one would be a place of the agent's.
  auto folders = text::split(value_or(variables, "PATH"), ':');
  folders.erase(std::remove_if(folders.begin(), folders.end(),
                               [](const std::string& folder) { return folder.front() != '/'; }),
                folders.end());
  if (!folders.empty()) variables["PATH"] = text::join(folders, ":");
  if (method == auth_method::bedrock) variables["CLAUDE_CODE_USE_BEDROCK"] = "1";
  if (method == auth_method::vertex) variables["CLAUDE_CODE_USE_VERTEX"] = "1";
  variables["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1";
  variables["DISABLE_AUTOUPDATER"] = "1";
  variables["CLAUDE_CODE_MAX_RETRIES"] = "1";  // clients retry by themselves
  variables["MAX_THINKING_TOKENS"] = "0";
  // Without these two an `@/path` in a prompt is replaced by that file, and CLAUDE.md is read.
  variables["CLAUDE_CODE_DISABLE_ATTACHMENTS"] = "1";
  variables["CLAUDE_CODE_DISABLE_CLAUDE_MDS"] = "1";
  variables["MAX_MCP_OUTPUT_TOKENS"] = "10000000";  // see `max_tool_result`
  variables["ENABLE_TOOL_SEARCH"] = "false";  // every tool of the client's reaches the API at once
  // Without these two (`tool_less_variables`) a long conversation is replaced by a summary of it,
  // at the cost of another call, or refused before the API has seen it.
  variables["DISABLE_COMPACT"] = "1";
  variables["CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE"] = "1000000000";
  return variables;
}

/// The name in a rule: `Bash` of `Bash(git:*)`.
inline std::string tool_of_rule(std::string_view rule) {
  return std::string(rule.substr(0, rule.find('(')));
}

/// Claude Code's own tools among the rules; an MCP server's are not known by that name.
inline std::vector<std::string> builtin_tools(const std::vector<std::string>& rules) {
  std::vector<std::string> names;
  for (const auto& rule : rules) {
    const auto name = tool_of_rule(rule);
    const bool known = std::find(names.begin(), names.end(), name) != names.end();
    if (!known && !text::starts_with(name, "mcp__")) names.push_back(name);
  }
  return names;
}

/// Claude Code's tools that read or change files by themselves.
inline bool is_file_tool(std::string_view name) {
  constexpr std::array<std::string_view, 6> names = {"Read", "Glob",  "Grep",
                                                     "Edit", "Write", "NotebookEdit"};
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// A rule for a path, or for all below it. The CLI takes it for a pattern in which nothing can be
/// escaped, so a sign that may be special there becomes one that matches any character.
inline std::string path_rule(const char* tool, std::string_view path, const char* below) {
  std::string pattern(path);
  const auto is_special = [](char c) { return !text::is_alphanumeric(c, "/._-"); };
  std::replace_if(pattern.begin(), pattern.end(), is_special, '?');
  return std::string(tool) + "(/" + pattern + below + ")";
}

inline std::vector<std::string> directories_of(const options& settings,
                                               const agent_request& agent) {
  auto directories = settings.agent_directories;
  directories.push_back(agent.directory);
  return directories;
}

/// What needs no permission. Where files are confined, a bare `Read` would be one for all of the
/// disk, while the CLI lets it read the agent's directories without any; a bare `Edit` or `Write`
/// becomes one for these directories.
inline std::vector<std::string> allowed_rules(const options& settings, const agent_request& agent) {
  if (agent.confined == confinement::none) return agent.tools;
  std::vector<std::string> rules;
  bool writes = false;
  for (const auto& rule : agent.tools) {
    if (!is_file_tool(rule)) rules.push_back(rule);
    writes = writes || rule == "Edit" || rule == "Write" || rule == "NotebookEdit";
  }
  if (!writes) return rules;
  for (const auto& directory : directories_of(settings, agent)) {
    rules.push_back(path_rule("Edit", directory, "/**"));
  }
  return rules;
}

/// What no tool gets: what the agent's client and the operator deny, and files with secrets.
inline std::vector<std::string> denied_rules(const options& settings, const agent_request& agent) {
  auto rules = agent.disallowed;
  for (const auto& path : settings.secret_paths) {
    for (const char* tool : {"Read", "Edit"}) {
      rules.push_back(path_rule(tool, path, ""));
      rules.push_back(path_rule(tool, path, "/**"));
    }
  }
  return rules;
}

/// One word for a POSIX shell, whatever it holds.
inline std::string shell_word(std::string_view word) {
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

/// The program that the CLI starts commands and MCP servers through (its CLAUDE_CODE_SHELL_PREFIX,
/// which must be one file; it is given the command as one argument). The words come by variables,
/// which nothing that an agent runs can change.
constexpr std::string_view confining_script = R"sh(#!/bin/sh
if [ -n "$CLAUDE_OPENAI_SERVER" ]; then
  unset GIT_DIR CLAUDE_CODE_SHELL_PREFIX CLAUDE_OPENAI_CONFINE
  eval "exec $CLAUDE_OPENAI_SERVER"
fi
if [ -n "$CLAUDE_OPENAI_CONFINED" ]; then set -- 'eval "$CLAUDE_OPENAI_CONFINED"'; fi
# The directory must still be the one that was allowed, and no link to another.
[ "$(cd "$CLAUDE_OPENAI_DIRECTORY" && pwd -P)" = "$CLAUDE_OPENAI_DIRECTORY" ] || exit 126
# What `claude` gives its children beside what it was given itself, such as tokens of its own.
for name in $(env | sed -nE 's/^((CLAUDE_CODE|CLAUDE_PID|ANTHROPIC|OTEL)[A-Z0-9_]*)=.*/\1/p'); do
  unset "$name"
done
eval "exec $CLAUDE_OPENAI_CONFINE" '"$1"'
)sh";

inline std::string confining_script_path(const options& settings) {
  return value_or(settings.environment, "TMPDIR", "/tmp") + "/confine";
}

/// The words that run a command which sees the system's programs and libraries and nothing else of
/// the disk, no other process, and no network unless it may; bubblewrap, bwrap(1). Files are the
/// caller's to add.
inline std::vector<std::string> bubblewrap_words(bool network) {
  constexpr const char* system =
      "/usr /bin /sbin /lib /lib32 /lib64 /opt /nix /etc/alternatives /etc/ca-certificates "
      "/etc/fonts /etc/group /etc/hosts /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d "
      "/etc/localtime /etc/mime.types /etc/nsswitch.conf /etc/os-release /etc/passwd "
      "/etc/pki/ca-trust /etc/pki/tls/certs /etc/resolv.conf /etc/ssl/certs "
      "/etc/ssl/openssl.cnf /etc/timezone";
  auto words = text::split(
      "bwrap --die-with-parent --new-session --unshare-all --unshare-user --cap-drop ALL", ' ');
  if (network) words.emplace_back("--share-net");
  for (const auto& part : text::split(system, ' ')) {
    words.insert(words.end(), {"--ro-bind-try", part, part});
  }
  words.insert(words.end(), {"--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"});
  return words;
}

inline std::string shell_line(const std::vector<std::string>& words) {
  std::string line;
  for (const auto& word : words) line += shell_word(word) + " ";
  return line;
}

/// Files with secrets that lie in the agent's directories are empty for its commands, and can be
/// neither changed nor made: a `.env` would be the settings of the next start.
inline void hide_secrets(const options& settings, const std::vector<std::string>& directories,
                         std::vector<std::string>& words) {
  auto visible = directories;
  visible.insert(visible.end(), {"/usr", "/opt", "/nix"});
  const auto is_within = [](const std::string& path, const std::vector<std::string>& all) {
    return std::any_of(all.begin(), all.end(), [&](const auto& directory) {
      return directory == "/" || text::starts_with(path, directory + "/");
    });
  };
  // A folder that is bound cannot be renamed, and take a file from where it is hidden.
  for (const auto& folder : settings.secret_folders) {
    if (is_within(folder, directories)) words.insert(words.end(), {"--bind", folder, folder});
  }
  for (const auto& path : settings.secret_paths) {
    if (path == "/proc" || !is_within(path, visible)) continue;
    const bool is_directory =
        path == settings.session_directory || path.find("/projects", path.size() - 9) != path.npos;
    if (is_directory) words.insert(words.end(), {"--tmpfs", path});
    if (!is_directory) words.insert(words.end(), {"--ro-bind", "/dev/null", path});
  }
}

/// For bash: a bound path may have become a link to elsewhere, so what is there must be what was
/// allowed.
inline std::string check_places(const agent_request& agent,
                                const std::vector<std::string>& directories) {
  std::string check;
  for (std::size_t i = 0; i < agent.places.size(); ++i) {
    check += "[ \"$(stat -c %d:%i " + shell_word(directories[i]) + ")\" = " + agent.places[i] +
             " ] || exit 126; ";
  }
  return check;
}

/// Confines what an agent runs: its commands see and change its directories alone, and have none of
/// the variables that a login is in.
inline void confine_commands(const options& settings, const agent_request& agent, command& made) {
  auto& variables = made.environment;
  auto patterns = variables_of(resolve_auth(settings));
  patterns.insert(patterns.end(), {"ANTHROPIC_CUSTOM_HEADERS", "CLAUDE_CODE_*",
                                   "CLAUDE_OPENAI_DIRECTORY", "GIT_DIR"});
  if (!settings.sandbox_network) {  // they may hold a password, and lead nowhere
    patterns.insert(patterns.end(), {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy",
                                     "https_proxy", "all_proxy"});
  }
  variables["GIT_DIR"] = "/dev/null";
  variables["CLAUDE_OPENAI_DIRECTORY"] = agent.directory;
  // Taken away before bubblewrap begins, since its own variables can be read by what it runs.
  std::vector<std::string> words{"env", "-u", "CLAUDE_OPENAI_CONFINE"};
  for (const auto& [name, value] : variables) {
    const auto lists = [&, key = std::string_view(name)](auto one) { return is_listed(key, one); };
    if (std::none_of(patterns.begin(), patterns.end(), lists)) continue;
    words.insert(words.end(), {"-u", name});
  }
  for (auto& word : bubblewrap_words(settings.sandbox_network)) words.push_back(std::move(word));
  const auto home = agent.private_directory + "/tmp";
  auto directories = directories_of(settings, agent);
  directories.push_back(home);
  for (const auto& directory : directories) {
    words.insert(words.end(), {"--bind", directory, directory});
  }
  hide_secrets(settings, directories, words);
  // By this socket 2.1.330 takes messages from anyone who knows the token in its children's
  // variables. In its place for the directory where `claude` writes, in which each command leaves a
  // file.
  words.insert(words.end(),
               {"--tmpfs", agent.private_directory + "/claude", "--tmpfs", home + "/cc-socks",
                "--setenv", "HOME", home, "--chdir", agent.directory, "bash", "-c"});
  words.insert(words.end(), {check_places(agent, directories) + "eval \"$1\"", "confined"});
  // `claude` itself asks git where it starts, and a repository that an agent has made can name
  // commands in its configuration: only what is confined sees it as one (GIT_DIR).
  variables["CLAUDE_OPENAI_CONFINE"] = shell_line(words);
  variables["CLAUDE_CODE_SHELL_PREFIX"] = confining_script_path(settings);
}

/// What an agent's process may do, beyond the settings of every process.
inline void add_agent_arguments(const options& settings, const agent_request& agent,
                                command& made) {
  auto& arguments = made.arguments;
  const auto add = [&](const char* flag, const std::vector<std::string>& values) {
    if (values.empty()) return;
    arguments.emplace_back(flag);
    arguments.insert(arguments.end(), values.begin(), values.end());
  };
  // Each rule is an argument of its own, so that none can end another; see `is_rule`. The flag is
  // there already.
  for (auto& rule : allowed_rules(settings, agent)) arguments.push_back(std::move(rule));
  add("--disallowedTools", denied_rules(settings, agent));
  if (agent.max_turns > 0) add("--max-turns", {std::to_string(agent.max_turns)});
  if (settings.max_budget_usd > 0) {
    add("--max-budget-usd", {dump(json(settings.max_budget_usd))});
  }
  if (!agent.mcp_config.empty()) {
    add("--mcp-config", {"/dev/fd/" + made.inherit(agent.mcp_config)});
  }
  for (const auto& directory : settings.agent_directories) add("--add-dir", {directory});
}

/// What an agent needs otherwise than a process without tools. Its commands and MCP servers inherit
/// its variables, so that the account's key is not among them.
inline void set_agent_environment(auth_method method, const agent_request& agent, command& made) {
  auto& variables = made.environment;
  bool has_login = method != auth_method::cli;
  for (const char* name : {"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"}) {
    const auto found = variables.find(name);
    if (found == variables.end() || found->second.empty()) continue;
    const bool key = found->first == "ANTHROPIC_API_KEY";
    variables[key ? "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"
                  : "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR"] = made.inherit(found->second);
    variables.erase(found);
    has_login = true;
  }
  // What the CLI keeps, such as long results of tools, is for its own client. The user's own login
  // can only be where the user's `claude` keeps it: there `secret_paths` hides the rest.
  if (has_login) {
    variables["CLAUDE_CONFIG_DIR"] = agent.private_directory + "/config";
  }
  variables["TMPDIR"] = agent.private_directory + "/tmp";
  // Here `claude` itself writes what commands say. They must not reach it: by a link in its place
  // 2.1.120 would write anywhere.
  variables["CLAUDE_CODE_TMPDIR"] = agent.private_directory + "/claude";
  // Of 2.1.248 and later: no rule lets a file tool leave the agent's directories.
  if (agent.confined != confinement::none) variables["CLAUDE_CODE_RESTRICTED"] = "1";
  for (const char* name : tool_less_variables) variables.erase(name);
  variables["MCP_CONNECTION_NONBLOCKING"] = "0";  // its servers are there from the first
  // The end of a command in the background would begin a turn that nobody has asked for.
  variables["CLAUDE_CODE_DISABLE_BACKGROUND_TASKS"] = "1";
}

inline std::vector<std::string> claude_words(const options& settings,
                                             const std::vector<std::string>& arguments) {
  std::vector<std::string> words{settings.claude_path};
  words.insert(words.end(), settings.claude_arguments.begin(), settings.claude_arguments.end());
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

/// True when a program could not be started because it is not there, or is none.
inline bool is_missing(const std::system_error& failure) {
  return failure.code().value() == ENOENT || failure.code().value() == EACCES;
}

/// What to do where there is no `claude`.
inline std::string say_missing(const options& settings) {
  return "claude cannot be started (" + settings.claude_path +
         "); install it with `npm install -g @anthropic-ai/claude-code`, or name it with "
         "--claude-path";
}

/// The flag that takes `--bare` back, of those that `claude --help` lists; empty for none.
inline std::string find_login_flag(std::string_view help) {
  std::string found;
  for (const auto& line : text::split(help, '\n')) {
    for (auto& word : text::split(line, ' ')) {
      if (word.front() != '-') break;  // the flags of a line come first
      if (word.back() == ',') word.pop_back();
      if (word == "--no-bare") return word;
      if (word != "--bare" && text::ends_with(word, "bare")) found = std::move(word);
    }
  }
  return found;
}

/// `--bare` starts faster and adds nothing to the prompt, but never reads the CLI's own login. An
/// agent is to have Claude Code's own prompt.
inline bool is_bare(const options& settings, const launch_profile& profile) {
  return resolve_auth(settings) != auth_method::cli && !profile.agent;
}

/// The command of a process without settings or memory of its own, and without tools or MCP servers
/// unless it is an agent. `login_flag`: see `find_login_flag`.
inline command make_command(const options& settings, const launch_profile& profile,
                            const std::string& login_flag = {}) {
  command made;
  const auto* agent = profile.agent ? &*profile.agent : nullptr;
  made.arguments = claude_words(
      settings, {"-p", "--input-format", "stream-json", "--output-format", "stream-json",
                 "--verbose", "--include-partial-messages", "--model=" + profile.model, "--tools",
                 agent ? text::join(builtin_tools(agent->tools), ",") : "", "--setting-sources", "",
                 "--strict-mcp-config", "--no-session-persistence", "--disable-slash-commands",
                 "--permission-mode", agent ? agent->permission_mode : "default", "--allowedTools",
                 "mcp__client"});  // see `tool_server`
  if (agent) add_agent_arguments(settings, *agent, made);
  const std::string mode = is_bare(settings, profile) ? "--bare" : login_flag;
  if (!mode.empty()) made.arguments.push_back(mode);
  made.environment = child_environment(settings);
  made.working_directory = agent ? agent->directory : settings.working_directory;
  if (agent) {
    set_agent_environment(resolve_auth(settings), *agent, made);
    if (agent->confined == confinement::commands) confine_commands(settings, *agent, made);
  } else {
    made.environment["CLAUDE_AGENT_SDK_MCP_NO_PREFIX"] = "1";
    made.environment["GIT_DIR"] = "/dev/null";  // as for agents that are confined, see there
  }
  return made;
}

//================================================================================================
// [18] process - child processes that cannot outlive us; the only section that makes them
// uses: text, options, cli_command | thread-safe where noted
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

/// Milliseconds for poll(2) until a time, or for an hour: rounded up, never negative.
inline int poll_timeout(steady_time until) {
  using namespace std::chrono;
  const auto left = ceil<milliseconds>(until - steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 3'600'000));
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

/// Why a path is no directory that only this user can use; empty when it is one.
inline std::string privacy_problem(const struct stat& path) {
  if (!S_ISDIR(path.st_mode)) return "is not a directory";
  if (path.st_uid != ::geteuid()) return "belongs to another user";
  if ((path.st_mode & 077U) != 0) return "is open to other users; `chmod 700` makes it private";
  return {};
}

/// Makes a directory for this user alone, and those above it as need be; one that is there stays as
/// it is. Throws `std::system_error`, which names the flag.
inline void make_private_directory(std::string path, const std::string& flag) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::absolute(path).parent_path(), failed);
  if (!failed && (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST)) return;
  throw std::system_error(
      failed ? failed : last_system_error(),
      flag + ": " + path + " cannot be made; choose a directory that you may write to");
}

/// Opens a file for reading that no other user but root can have written; `flags` are more of
/// open(2)'s. Empty for none; with a problem for one that is no such file.
inline unique_fd open_own_file(const std::string& path, std::string& problem, int flags = 0) {
  unique_fd file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags));
  struct stat info {};
  if (!file || ::fstat(file.get(), &info) != 0) return {};
  if (info.st_uid != ::geteuid() && info.st_uid != 0) {
    problem = "it belongs to another user";
  } else if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    problem = "its group or others may write it (chmod 600 " + path + ")";
  } else if (!S_ISREG(info.st_mode)) {
    problem = "it is no regular file";
  }
  return problem.empty() ? std::move(file) : unique_fd();
}

/// A private directory (mode 0700) that is removed with all it holds. It is locked: that keeps
/// systemd-tmpfiles, which tidies `/tmp` up, away from it.
class temporary_directory {
 public:
  /// Throws `std::system_error` when it cannot be made.
  explicit temporary_directory(const std::string& parent)
      : path_(parent + "/claude-openai-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) {
      throw std::system_error(last_system_error(), "no directory can be made in " + parent +
                                                       "; set TMPDIR to one that you may write to");
    }
    hold();
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory() {
    std::error_code ignored;
    if (is_own()) std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

  /// To be called before the path is used: makes the directory anew when it is gone, since others
  /// tidy `/tmp` up. Throws `std::system_error` when something else has its name: whoever made that
  /// could read and exchange what is put there. Thread-safe.
  void ensure() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_own()) return;
    const bool made = ::mkdir(path_.c_str(), 0700) == 0;
    if (!made && errno != EEXIST) {
      throw std::system_error(last_system_error(), "cannot make the directory " + path_);
    }
    if (made) return hold();
    throw std::system_error(std::make_error_code(std::errc::file_exists),
                            "the proxy's private directory " + path_ +
                                " was removed and something else has its name; restart the proxy");
  }

 private:
  void hold() {
    held_ = unique_fd(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!is_own()) throw std::system_error(last_system_error(), "cannot use " + path_);
    ::flock(held_.get(), LOCK_SH);
  }

  /// The path still leads to what was made. Its mode is set again: an agent works in it.
  bool is_own() const {
    struct stat held {};
    struct stat named {};
    return held_ && ::fstat(held_.get(), &held) == 0 && ::lstat(path_.c_str(), &named) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino &&
           held.st_uid == ::geteuid() && ::fchmod(held_.get(), 0700) == 0;
  }

  std::string path_;
  unique_fd held_;
  std::mutex mutex_;
};

/// Writes everything to a file. False when it does not fit.
inline bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) bytes.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

/// The open file has that path, without a link on the way; taken for true where the system does not
/// tell.
inline bool leads_to(int fd, const std::string& path) {
  std::error_code failed;
  const auto real = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), failed);
  return failed || real == std::filesystem::path(path);
}

inline std::vector<char*> pointers_to(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (auto& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

/// A descriptor of that very directory, since the path may have become a link. Empty for no path;
/// throws `std::system_error`.
inline unique_fd open_directory(const std::string& path) {
  if (path.empty()) return {};
  unique_fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) throw std::system_error(last_system_error(), "cannot enter " + path);
  if (!leads_to(directory.get(), path)) {
    throw std::system_error(std::make_error_code(std::errc::no_such_file_or_directory),
                            path + " has become a link");
  }
  return directory;
}

/// Has a child close all descriptors from `first` on: others than we may have left some open.
inline void close_from(int first, posix_spawn_file_actions_t& actions) {
#ifdef __GLIBC__
#if __GLIBC_PREREQ(2, 34)
  posix_spawn_file_actions_addclosefrom_np(&actions, first);
  return;
#endif
#endif
  std::error_code failed;
  for (const auto& open : std::filesystem::directory_iterator("/proc/self/fd", failed)) {
    const auto fd = text::try_number<int>(open.path().filename().string());
    if (fd && *fd >= first) posix_spawn_file_actions_addclose(&actions, *fd);
  }
}

/// Starts a command in a process group of its own; `streams` become its descriptors from 0 on.
/// Throws `std::system_error`.
inline pid_t spawn(const command& what, const std::vector<int>& streams) {
  const auto directory = open_directory(what.working_directory);
  auto arguments = what.arguments;
  std::vector<std::string> variables;
  for (const auto& [name, value] : what.environment) variables.push_back(name + "=" + value);
  posix_spawn_file_actions_t actions{};
  posix_spawn_file_actions_init(&actions);
  int next = 0;
  for (const int stream : streams) {
    posix_spawn_file_actions_adddup2(&actions, stream, next++);
  }
  if (directory) posix_spawn_file_actions_addfchdir_np(&actions, directory.get());
  posix_spawnattr_t attributes{};
  posix_spawnattr_init(&attributes);
  short flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
#ifdef __APPLE__
  flags |= POSIX_SPAWN_CLOEXEC_DEFAULT;
#else
  close_from(next, actions);
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

/// A shell that ends our children's process groups when we die, even by SIGKILL: it notices by the
/// end of file on a pipe that only we hold. Not a fork, which would keep a copy of all the memory
/// of the program that we are part of, and its descriptors. Thread-safe. Owned by the pool.
///
/// A child that starts in the microsecond before a SIGKILL is not known to it: that one ends by the
/// end of its input. PR_SET_PDEATHSIG would do for Linux alone, but fires when the spawning
/// *thread* ends.
class child_guard {
 public:
  /// Also ignores for this program SIGPIPE, since a child may die while it is written to, and
  /// SIGXFSZ: a session that outgrows the limit of file sizes is not stored, no more.
  ///
  /// `scratch` is a directory that goes with this program, however it ends; null for none. Throws
  /// `std::system_error`.
  explicit child_guard(temporary_directory* scratch = nullptr) : scratch_(scratch) {
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGXFSZ, SIG_IGN);
    auto pipe = make_pipe();
    const unique_fd nothing(::open("/dev/null", O_RDWR | O_CLOEXEC));
    const command shell{{"/bin/sh", "-c", script, "claude-guard"},
                        {{"PATH", "/usr/bin:/bin"},
                         {"SCRATCH", scratch_ == nullptr ? std::string() : scratch_->path()}},
                        "/"};
    pid_ = spawn(shell, {pipe.read.get(), nothing.get(), nothing.get()});
    pipe_ = std::move(pipe.write);
  }
  child_guard(const child_guard&) = delete;
  child_guard& operator=(const child_guard&) = delete;
  ~child_guard() {
    tell("end", 0);
    pipe_.reset();
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  /// Before a child is started: the directory that it works in is there, and ours.
  void prepare() const {
    if (scratch_ != nullptr) scratch_->ensure();
  }
  void add(pid_t group) const { tell("add", group); }
  void remove(pid_t group) const { tell("remove", group); }

 private:
  /// Without `end`, this program could not clean up itself. An agent ends its own children on
  /// SIGINT only.
  static constexpr const char* script = R"(trap '' TERM HUP
groups=
while read -r what group; do
  case $what in
    add) groups="$groups $group" ;;
    remove)
      all=$groups
      groups=
      for one in $all; do [ "$one" = "$group" ] || groups="$groups $one"; done ;;
    end) SCRATCH= ;;
  esac
done
for group in $groups; do kill -s INT -- "-$group"; done
[ -z "$groups" ] || sleep 0.4
for group in $groups; do kill -s KILL -- "-$group"; done
[ -z "$SCRATCH" ] || exec rm -rf -- "$SCRATCH")";

  void tell(const char* what, pid_t group) const {
    write_all(pipe_.get(), std::string(what) + " " + std::to_string(group) + "\n");
  }

  temporary_directory* scratch_;
  unique_fd pipe_;
  pid_t pid_ = -1;
};

/// A running command in a process group of its own, with pipes to its three streams. Its owner
/// ends it; the destructor kills what is left. One thread at a time.
class child_process {
 public:
  /// Throws `std::system_error` when the program cannot be started, or has no directory to work in.
  child_process(const command& what, const child_guard& guard) : guard_(&guard) {
    guard_->prepare();
    pipe_ends in = make_pipe();
    pipe_ends out = make_pipe();
    pipe_ends err = make_pipe();
    std::vector<unique_fd> secrets;
    std::vector<int> streams{in.read.get(), out.write.get(), err.write.get()};
    for (const auto& secret : what.inherited) {
      secrets.push_back(fill_pipe(secret));
      streams.push_back(secrets.back().get());
    }
    pid_ = spawn(what, streams);
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
    const int asked = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
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
  /// A pipe from which these bytes can be read. Throws `std::system_error` when they do not fit it.
  static unique_fd fill_pipe(std::string_view bytes) {
    auto ends = make_pipe();
    set_nonblocking(ends.write.get());
#ifdef F_SETPIPE_SZ
    ::fcntl(ends.write.get(), F_SETPIPE_SZ, static_cast<int>(bytes.size()));
#endif
    if (!write_all(ends.write.get(), bytes)) {
      throw std::system_error(last_system_error(), "the settings of MCP servers do not fit a pipe");
    }
    // Above all descriptors that it may become, so that none of them is closed by another's.
    return unique_fd(::fcntl(ends.read.get(), F_DUPFD_CLOEXEC, 32));
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

/// All of a file that can be read; empty for none.
inline std::string read_all(const unique_fd& file) {
  std::string bytes;
  while (file && read_available(file.get(), bytes)) {
  }
  return bytes;
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

constexpr std::size_t max_command_output = 8 * 1024 * 1024;

struct command_output {
  bool finished = false;  ///< false: it was killed, at the deadline or since it printed too much
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
  command_output result;
  while (std::chrono::steady_clock::now() < deadline && !stop.is_raised()) {
    std::array<pollfd, 2> fds{{{child.output.get(), POLLIN, 0}, {child.errors.get(), POLLIN, 0}}};
    ::poll(fds.data(), fds.size(), 10);
    const bool exited = child.has_exited();  // before the last read, so that nothing is missed
    if (child.output && !read_available(child.output.get(), result.output)) child.output.reset();
    if (child.errors && !read_available(child.errors.get(), result.errors)) child.errors.reset();
    if (exited || result.output.size() + result.errors.size() > max_command_output) break;
  }
  result.finished = child.try_reap();
  result.ending = child.ending();
  return result;
}

/// Runs `claude` with these arguments alone.
inline command_output run_claude(const options& settings, const std::vector<std::string>& arguments,
                                 const child_guard& guard, std::chrono::seconds timeout,
                                 const wake_signal& stop = wake_signal()) {
  const command what{claude_words(settings, arguments), child_environment(settings), {}};
  return run_command(what, guard, timeout, stop);
}

/// Memory of the machine in bytes; 0 when it is unknown.
inline std::uint64_t physical_memory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long size = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || size <= 0) return 0;
  return static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(size);
}

/// Memory that a process has in use, in bytes; 0 where the system does not tell.
inline std::uint64_t resident_memory(pid_t pid) {
  std::string contents;
  const auto path = "/proc/" + std::to_string(pid) + "/statm";
  const unique_fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file) read_available(file.get(), contents);
  const auto fields = text::split(contents, ' ');
  const auto pages = fields.size() < 2 ? std::nullopt : text::try_number<std::uint64_t>(fields[1]);
  return pages.value_or(0) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
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

/// A program's file behind all links; of no path where there is none.
struct program_file {
  std::string path;
  std::filesystem::file_time_type written;
  std::uintmax_t bytes = 0;

  bool operator==(const program_file& other) const {
    return std::tie(path, written, bytes) == std::tie(other.path, other.written, other.bytes);
  }
  bool operator!=(const program_file& other) const { return !(*this == other); }
};

inline program_file find_program_file(const std::string& name, const environment_map& variables) {
  std::error_code failed;
  const auto real = std::filesystem::canonical(find_program(name, variables), failed);
  if (failed) return {};
  return {real.string(), std::filesystem::last_write_time(real, failed),
          std::filesystem::file_size(real, failed)};
}

/// Where this program is; by the name it was called where the system does not tell.
inline std::string path_of_program(const std::string& name) {
  std::error_code unknown;
  const auto path = std::filesystem::read_symlink("/proc/self/exe", unknown);
  if (!unknown) return path.string();
  const auto found = find_program(name, current_environment());
  return std::filesystem::absolute(found.empty() ? name : found).string();
}

//================================================================================================
// [19] claude_process - one `claude`: the conversation that it holds, and how it gets more
// uses: text, errors, log, json_access, conversation, events, cli_protocol,
//       process | one thread
//================================================================================================

constexpr const char* probe_id = "probe";  ///< of the requests that `claude` answers
constexpr const char* opening_id = "initialize";
constexpr const char* settings_id = "settings";
constexpr const char* question_id = "get_settings";
constexpr const char* interrupt_id = "interrupt";

/// The pipes of one `claude`, line by line. One thread at a time.
class cli_connection {
 public:
  /// Throws `std::system_error` when the program cannot be started.
  cli_connection(const command& what, const child_guard& guard)
      : child_(std::make_unique<child_process>(what, guard)) {}

  const child_process& child() const { return *child_; }

  /// Gives the process up: the owner of the child ends it.
  std::unique_ptr<child_process> take_child() { return std::move(child_); }

  void send(std::string_view bytes) {
    outgoing_.add(bytes);
    if (child_->input && !outgoing_.flush(child_->input.get())) child_->input.reset();
  }

  /// What poll(2) has to watch.
  void add_poll_entries(std::vector<pollfd>& entries) const {
    if (!outgoing_.empty() && child_->input) {
      entries.push_back({child_->input.get(), POLLOUT, 0});
    }
    if (child_->output) entries.push_back({child_->output.get(), POLLIN, 0});
    if (child_->errors) entries.push_back({child_->errors.get(), POLLIN, 0});
  }

  /// Moves all bytes that can be moved without waiting, and hands each line to `read`. Returns why
  /// no more can come; empty while more may.
  template <class Read>
  std::string pump(Read read) {
    const bool exited = child_->has_exited();  // before the last read, so that nothing is missed
    send({});
    read_stderr();
    std::string received;
    const bool open = child_->output && read_available(child_->output.get(), received);
    splitter_.feed(received);
    while (const auto line = splitter_.next()) read(*line);
    if (splitter_.overflowed()) return "claude printed an endless line";
    if (!received.empty() || (open && !exited)) return {};
    const bool reaped = child_->wait_for_exit(std::chrono::milliseconds(100)) && child_->try_reap();
    read_stderr();
    return "claude ended unexpectedly" + (reaped ? " (" + child_->ending() + ")" : std::string());
  }

  /// The reason, with the last of what `claude` wrote to its stderr.
  std::string explain(const std::string& reason) const {
    const auto complaint = text::repair_utf8(text::trim(redact(stderr_tail_)));
    return complaint.empty() ? reason : reason + ": " + complaint;
  }

 private:
  static constexpr std::size_t max_stderr_tail = 2048;

  void read_stderr() {
    if (child_->errors && !read_available(child_->errors.get(), stderr_tail_)) {
      child_->errors.reset();
    }
    if (stderr_tail_.size() > max_stderr_tail) {
      stderr_tail_.erase(0, stderr_tail_.size() - max_stderr_tail);
    }
  }

  std::unique_ptr<child_process> child_;
  write_buffer outgoing_;
  line_splitter splitter_;
  std::string stderr_tail_;  ///< the last of its stderr
};

/// The in-process MCP server by which a `claude` knows the client's tools. A call stays unanswered
/// until a request brings its result.
class client_tools {
 public:
  void offer(const std::vector<tool_definition>& tools, const tool_names& names) {
    listed_ = encode_tools(tools, names);
  }

  void forget_calls() {
    calls_.clear();
    results_.clear();
  }

  bool has_unclaimed_results() const { return !results_.empty(); }

  /// The results that the client brings for these calls, which are those of the message `before`.
  /// Clients may rename call ids, even all to the same: results belong to calls by their places.
  void take_results(const message& entry, const message& before,
                    const std::vector<std::string>& calls) {
    auto names = call_ids(before);
    for (const auto& part : entry.parts) {
      const auto* result = std::get_if<tool_result_part>(&part);
      if (result == nullptr) continue;
      const auto name = std::find(names.begin(), names.end(), result->call_id);
      const auto place = static_cast<std::size_t>(name - names.begin());
      if (name == names.end() || place >= calls.size()) continue;
      results_[calls[place]] = encode_tool_result(*result);
      name->clear();  // another result of this name is a later call's
    }
  }

  /// The lines that answer the calls which have been made and whose results are known.
  std::string answer_calls() {
    std::string lines;
    for (auto result = results_.begin(); result != results_.end();) {
      const auto call = calls_.find(result->first);
      if (call == calls_.end()) {  // the process has not come to it yet
        ++result;
        continue;
      }
      lines += encode_mcp_reply(call->second, result->second);
      calls_.erase(call);
      result = results_.erase(result);
    }
    return lines;
  }

  /// The line that answers a request of the process's; empty for a call, which is kept under the id
  /// that `name` gives it.
  template <class Name>
  std::string take_request(const json& asked, Name name) {
    const auto& message = member_of(member_of(asked, "request"), "message");
    const auto method = string_of(message, "method");
    if (!message.is_object()) {
      return encode_control_response(asked, "error", "error", "not supported");
    }
    if (method == "tools/list") return encode_mcp_reply(asked, listed_);
    const auto& params = member_of(message, "params");
    if (method == "initialize") {
      const json server = json::object({{"name", tool_server}, {"version", CLAUDE_OPENAI_VERSION}});
      return encode_mcp_reply(
          asked, json::object({{"protocolVersion", member_of(params, "protocolVersion")},
                               {"capabilities", json::object({{"tools", json::object()}})},
                               {"serverInfo", server}}));
    }
    if (method != "tools/call") return encode_mcp_reply(asked, json::object());
    calls_[name(string_of(member_of(params, "_meta"), "claudecode/toolUseId"))] = asked;
    return {};
  }

 private:
  json listed_;
  std::map<std::string, json> calls_;    ///< that wait for their result, by id
  std::map<std::string, json> results_;  ///< that wait for their call, by its id
};

/// What a turn asks beside its messages, as it is sent to a process. It may change from turn to
/// turn; the default is what a fresh process has.
struct turn_settings {
  std::string settings = encode_settings(settings_id, turn_request(), tool_names());
  std::int64_t thinking = 0;
  bool acknowledged = true;  ///< the process has taken the settings
};

/// A user's message that can be taken back, with all after it.
struct turn_mark {
  std::size_t message = 0;  ///< its place in the conversation
  std::string uuid;         ///< under which the process got it
};

/// How a process is ended without harm.
struct stop_policy {
  int signal = SIGTERM;
  bool close_input = true;
};

/// What a process holds of a conversation.
struct conversation_cursor {
  conversation_trace held;
  std::size_t written = 0;       ///< messages of it that the process knows
  std::vector<turn_mark> marks;  ///< the user's messages among these that it can take back
  std::size_t lines = 0;         ///< sent so far, with those taken back

  /// Only the first messages are left; the marks of the others are gone already.
  void shorten(std::size_t keep) {
    written = keep;
    held.ends.resize(keep);
    held.thoughts.resize(keep);
    held.words.resize(keep == 0 ? 0 : held.ends.back());
  }
};

/// The way back, a message at a time.
struct rewind_state {
  std::size_t keep = 0;       ///< messages that stay
  bool interrupting = false;  ///< the interrupt before the first step is not acknowledged yet
  std::size_t steps = 0;      ///< of this process so far, so that each has an id of its own
  bool asked = false;         ///< the last of them is still to be confirmed

  std::string id() const { return "rewind-" + std::to_string(steps); }
};

/// Until a limit of the subscription begins anew; 0 or less: it has. One that does not say when is
/// believed for five minutes.
inline std::chrono::seconds time_to_reset(const usage_window& window) {
  constexpr std::int64_t believed = 300;
  constexpr std::int64_t longest = 7 * 24 * 3600;
  const auto reset = window.resets_at > 0 ? window.resets_at : window.noted_at + believed;
  return std::chrono::seconds(std::min(reset - std::time(nullptr), longest));
}

/// `seven_day_opus` limits the models of that family; what names no family limits all.
inline bool limits_model(const usage_window& window, const std::string& model) {
  const auto limited = price_of(window.name).family;
  const auto asked = price_of(model).family;
  return limited.empty() || asked.empty() || limited == asked;
}

/// The subscription's limits, each as the CLI reported it last. Thread-safe.
class limit_board {
 public:
  explicit limit_board(const logger& log) : log_(log) {}

  /// `asked_at`: when the API was asked that told of it, in Unix seconds. A limit that was found to
  /// be used up after that still is: answers of one moment arrive in any order.
  void note(usage_window window, std::int64_t asked_at) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& known = windows_[window.name];
    if (window.resets_at == 0 && time_to_reset(known).count() > 0) {
      window.resets_at = known.resets_at;
    }
    if (window.resets_at == known.resets_at) {  // what is not told anew still holds
      if (!window.utilization) window.utilization = known.utilization;
      const bool older = asked_at <= known.noted_at && how_spent(window) < how_spent(known);
      if (older || window.status.empty()) {
        window.extra_usage = known.extra_usage;
        window.status = known.status;
      }
    }
    const int spent = how_spent(window);
    if (spent > 0 && spent != how_spent(known)) {
      log_.warning("the plan's limit " + window.name + " is used up" +
                   (spent == 1
                        ? ": answers are billed as extra usage (--no-extra-usage refuses them)"
                        : ""));
    }
    window.noted_at = std::time(nullptr);
    known = std::move(window);
  }

  /// The limit that keeps a model from answering: of several the one that lasts longest, and first
  /// of all one that would bill. `extra_usage`: answers that are billed beyond the plan are wanted.
  std::optional<usage_window> find_spent(const std::string& model, bool extra_usage) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto order = [](const usage_window& window) {
      return std::make_pair(window.extra_usage, time_to_reset(window));
    };
    std::optional<usage_window> found;
    for (const auto& entry : windows_) {
      const usage_window& window = entry.second;
      const int spent = how_spent(window);
      const bool answers = spent == 0 || (spent == 1 && extra_usage);
      if (answers || time_to_reset(window).count() <= 0 || !limits_model(window, model)) continue;
      if (!found || order(window) > order(*found)) found = window;
    }
    return found;
  }

  std::vector<usage_window> all() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<usage_window> windows;
    for (const auto& entry : windows_) windows.push_back(entry.second);
    return windows;
  }

 private:
  /// 1: answers are billed beyond the plan, 2: there are none.
  static int how_spent(const usage_window& window) {
    if (window.extra_usage) return 1;
    return window.status == "rejected" ? 2 : 0;
  }

  const logger& log_;
  mutable std::mutex mutex_;
  std::map<std::string, usage_window> windows_;
};

/// What a process does for one request.
struct process_turn {
  const turn_request* request = nullptr;  ///< null when nobody waits for the turn's end
  conversation_trace trace;               ///< until the process has the messages
  bool agent = false;
  tool_names names;
  int retries = 0;
  std::int64_t asked_at = std::time(nullptr);  ///< Unix seconds
  bool refused_by_plan = false;
  std::deque<event> events;
  bool event_delivered = false;
  bool failed_before_first_event = false;
};

/// How long a process of which program has served, and what that has cost.
struct service_record {
  program_file program = {};
  steady_time started = std::chrono::steady_clock::now();
  std::string day = text::local_day();
  int turns = 0;
  double cost = 0;  ///< in USD, as it reported
};

/// The process's own id of the API for one of its models, where it has named it.
inline std::string resolve_model(const json& initialize_response, const std::string& name) {
  const auto& models = member_of(initialize_response, "models");
  if (!models.is_array()) return name;
  for (const auto& known : models) {
    if (string_of(known, "value") != name) continue;
    const auto resolved = string_of(known, "resolvedModel");
    if (!resolved.empty()) return resolved;
  }
  return name;
}

/// `claude` takes no message back that brings the results of its calls, but the one before.
inline bool holds_results(const message& entry) {
  return std::any_of(entry.parts.begin(), entry.parts.end(), [](const content_part& part) {
    return std::holds_alternative<tool_result_part>(part);
  });
}

/// Speaks with one `claude`. Its owner moves its bytes with `pump`; it has no thread.
///
/// It is a cursor in a conversation: `begin` rewinds to the last message that both have, replays
/// the messages that are missing, and sends the last one; nothing before `claude` has confirmed
/// each rewind.
class claude_process {
 public:
  /// `starting` until it has answered a probe, then `ready`: it holds no conversation and belongs
  /// to no client yet. `idle`: each user message that it holds has its answer. `dead`: it must be
  /// ended.
  enum class state {
    starting,
    ready,
    replaying,
    answering,
    awaiting_tool_results,
    idle,
    rewinding,
    dead
  };

  /// The rewind that this CLI has refused. Older ones refuse some.
  enum class refusal { none, first_message, any_message };

  /// `limits` learns what it reports of the subscription; null where it uses none. Throws
  /// `std::system_error` when the program cannot be started.
  claude_process(const command& what, const child_guard& guard, limit_board* limits = nullptr,
                 program_file program = {})
      : connection_(what, guard), limits_(limits), service_{std::move(program)} {
    connection_.send(encode_probe(probe_id));
  }

  state now() const { return state_; }

  /// Also looks for an exit that was not read yet.
  bool alive() const { return state_ != state::dead && !connection_.child().has_exited(); }

  /// It ended, or wrote an unknown message, before any event of the turn.
  bool failed_before_first_event() const { return turn_.failed_before_first_event; }

  refusal refused() const { return refused_; }
  bool is_agent() const { return turn_.agent; }
  steady_time started() const { return service_.started; }
  const program_file& program() const { return service_.program; }

  /// It began on this day: without `--bare` a prompt names the date.
  bool is_of_today() const { return service_.day == text::local_day(); }

  /// Where it is in which conversation.
  const conversation_cursor& cursor() const { return cursor_; }

  token_usage usage() const { return decoder_.meter().usage(); }

  /// See `turn_decoder`.
  bool was_cut() const { return decoder_.was_cut(); }

  /// How often the CLI has asked the API again in this turn.
  int retries() const { return turn_.retries; }

  /// A limit of the subscription has refused this turn.
  bool refused_by_plan() const { return turn_.refused_by_plan; }

  /// It has served so many turns, or grown so much, that another serves better.
  bool is_worn() const {
    constexpr int max_service = 500;  // turns
    constexpr std::uint64_t max_memory = 400ULL * 1024 * 1024;
    return service_.turns >= max_service || resident_memory(connection_.child().pid()) > max_memory;
  }

  /// An agent ends its own children on SIGINT only. A process that waits for the client's tools
  /// would answer for them on any signal that it can catch, and ask the model again.
  stop_policy ending() const {
    if (turn_.agent) return {SIGINT, false};  // older ones leave them alone when their input ends
    const bool waits = runs_ && (decoder_.finished() || state_ == state::rewinding);
    return {waits ? SIGKILL : SIGTERM, true};
  }

  /// Brings the process to the request's conversation and asks; its answer comes as events. The
  /// first `keep` messages are those that it holds; the others are taken back, or sent. One that
  /// awaits the results of tools must be given these and nothing else, or be taken back. `request`
  /// must outlive the turn, which `accept` or `release` ends.
  void begin(const turn_request& request, conversation_trace trace, std::size_t keep) {
    turn_ = {};
    turn_.request = &request;
    turn_.trace = std::move(trace);
    turn_.agent = request.agent.has_value();
    ++service_.turns;
    if (keep >= cursor_.held.ends.size()) return ask();
    decoder_ = turn_decoder(0);
    rewind_to(keep);
  }

  /// The turn has ended, and this is what the client will send back of it.
  void accept(const message& reply) {
    const bool whole = decoder_.finished() && !was_cut() && turn_.events.empty();
    if (state_ != state::answering || !whole) return;
    append_message(cursor_.held, reply, {});
    cursor_.written = cursor_.held.ends.size();
    turn_.request = nullptr;
    state_ = decoder_.calls().empty() ? state::idle : state::awaiting_tool_results;
  }

  /// The turn is abandoned. Its messages are taken back, where that may be;
  /// else the process is dead.
  void release(bool may_rewind) {
    turn_.request = nullptr;
    turn_.events.clear();
    switch (state_) {
      case state::starting:
      case state::ready:
      case state::awaiting_tool_results:
      case state::idle:
      case state::dead: return;
      case state::rewinding: break;
      case state::replaying:
      case state::answering:
        // After a cut an interrupt comes too late to stop the CLI's own next call.
        if (turn_.agent || was_cut() || cursor_.marks.empty()) break;
        rewind_to(cursor_.marks.back().message);
    }
    if (!may_rewind || state_ != state::rewinding) state_ = state::dead;
  }

  /// Only asks the process for its models, its account, and whether it has `promptCacheTtl`: then
  /// it drops a value that it does not know, while a setting that it does not know stays.
  void request_capabilities() {
    turn_request nothing;
    nothing.system = "-";
    connection_.send(encode_initialize(opening_id, nothing) +
                     encode_probe(probe_id, json::object({{"promptCacheTtl", "?"}})) +
                     encode_control_request(question_id, question_id));
    state_ = state::answering;
  }

  /// What the process answered to `initialize`, and below `get_settings` to that; null until then.
  const json& initialize_response() const { return initialize_response_; }

  /// The next event that is known already.
  std::optional<event> pop() {
    if (turn_.events.empty()) return std::nullopt;
    event next = std::move(turn_.events.front());
    turn_.events.pop_front();
    turn_.event_delivered = true;
    return next;
  }

  /// What poll(2) has to watch for this process.
  void add_poll_entries(std::vector<pollfd>& entries) const {
    connection_.add_poll_entries(entries);
  }

  /// Moves all bytes that can be moved without waiting, and reads what the process says.
  void pump() {
    const auto wrong = connection_.pump([this](std::string_view line) { read_line(line); });
    if (!wrong.empty()) fail(wrong);
    const auto waits = std::chrono::steady_clock::now() - waits_since_;
    if (state_ == state::starting && waits > start_timeout) fail("claude does not start");
    if (state_ == state::rewinding && waits > max_step) fail("claude takes nothing back");
  }

  /// Gives the process up: the owner of the child ends it.
  std::unique_ptr<child_process> take_child() { return connection_.take_child(); }

 private:
  static constexpr std::chrono::seconds start_timeout{60};  // usual: 0.5 s
  static constexpr std::chrono::seconds max_step{6};        // to take one message back; usual: 3 ms

  // ---- back -------------------------------------------------------------------------------------

  /// Takes back all but the first `keep` messages: an answer under way is interrupted first.
  void rewind_to(std::size_t keep) {
    tools_.forget_calls();
    rewind_.keep = keep;
    // A replayed message ends by itself: it is acknowledged.
    rewind_.interrupting = runs_ && state_ != state::replaying;
    if (rewind_.interrupting) connection_.send(encode_interrupt(interrupt_id));
    state_ = state::rewinding;
    rewind_step();
  }

  /// `claude` takes back only the last of the messages, so there is a step for each.
  void rewind_step() {
    waits_since_ = std::chrono::steady_clock::now();
    if (runs_ || rewind_.interrupting) return;
    if (!cursor_.marks.empty() && cursor_.marks.back().message >= rewind_.keep) {
      ++rewind_.steps;
      rewind_.asked = true;
      return connection_.send(encode_rewind(rewind_.id(), cursor_.marks.back().uuid));
    }
    cursor_.shorten(rewind_.keep);
    state_ = state::idle;
    if (turn_.request != nullptr) ask();
  }

  void read_rewound(const json& response) {
    if (!std::exchange(rewind_.asked, false) || state_ != state::rewinding) return;
    const auto& answer = member_of(response, "response");
    if (boolean_of(answer, "rewound")) {
      cursor_.marks.pop_back();
      return rewind_step();
    }
    const bool unknown = string_of(response, "subtype") == "error";
    const bool first = string_of(answer, "error") == "no preceding assistant";
    if (first) refused_ = refusal::first_message;
    if (unknown) refused_ = refusal::any_message;
    fail("claude did not take a message back: " + string_of(unknown ? response : answer, "error"));
  }

  // ---- on ---------------------------------------------------------------------------------------

  /// Sends the process what it does not hold of the request, and asks.
  void ask() {
    auto shape = make_answer_shape(*turn_.request);
    turn_.names = shape.names;
    std::string lines;
    if (cursor_.held.identity.empty()) {
      lines = encode_initialize(opening_id, *turn_.request);
      tools_.offer(turn_.request->tools, turn_.names);
    }
    lines += encode_changed_settings({encode_settings(settings_id, *turn_.request, turn_.names),
                                      turn_.request->thinking_tokens.value_or(0)});
    const bool brings_results = state_ == state::awaiting_tool_results;
    const double charged = brings_results ? decoder_.meter().charged_ahead() : 0;
    if (brings_results) {
      const auto entry = turn_.request->messages.rbegin();
      tools_.take_results(*entry, *(entry + 1), decoder_.calls());
    }
    decoder_ = turn_decoder(service_.cost, std::move(shape), charged);
    cursor_.held = std::move(turn_.trace);
    if (!brings_results) return replay_next(std::move(lines));
    cursor_.written = cursor_.held.ends.size();
    state_ = state::answering;
    connection_.send(lines);
    answer_calls();
  }

  /// Sends what the process lacks up to the next user's message, which will be acknowledged or
  /// answered.
  void replay_next(std::string lines) {
    const auto& messages = turn_.request->messages;
    for (bool asked = false; !asked && cursor_.written < messages.size(); ++cursor_.written) {
      ++cursor_.lines;
      const auto& entry = messages[cursor_.written];
      asked = entry.author == role::user;
      message_line line{cursor_.written + 1 == messages.size(), asked ? next_uuid() : std::string(),
                        cursor_.lines, resolve_model(initialize_response_, turn_.request->model)};
      if (asked && !holds_results(entry)) cursor_.marks.push_back({cursor_.written, line.uuid});
      if (line.ask && !turn_.request->nudge.empty()) {
        auto nudged = entry;
        nudged.parts.emplace_back(text_part{turn_.request->nudge});
        lines += encode_message(nudged, turn_.names, line);
      } else {
        lines += encode_message(entry, turn_.names, line);
      }
    }
    state_ = cursor_.written == messages.size() ? state::answering : state::replaying;
    runs_ = true;
    connection_.send(lines);
  }

  /// The lines that tell the turn's wishes, where they differ from the last one's.
  std::string encode_changed_settings(turn_settings wishes) {
    std::string lines;
    wishes.acknowledged = wishes.settings == sent_settings_.settings;
    if (wishes.thinking != sent_settings_.thinking)
      lines += encode_thinking("thinking", wishes.thinking);
    if (!wishes.acknowledged) lines += wishes.settings;
    sent_settings_ = std::move(wishes);
    return lines;
  }

  /// Once the process knows what the client wishes of the API call that follows.
  void answer_calls() {
    if (sent_settings_.acknowledged) connection_.send(tools_.answer_calls());
  }

  /// `claude` compares the first 24 characters only.
  std::string next_uuid() const {
    std::array<char, 40> uuid{};
    std::snprintf(uuid.data(), uuid.size(), "%08zx-0000-4000-8000-000000000000", cursor_.lines);
    return uuid.data();
  }

  // ---- what it says -----------------------------------------------------------------------------

  void read_line(std::string_view text) {
    if (text::trim(text).empty()) return;
    const json line = try_parse_json(text, max_line_depth);
    if (!line.is_object()) {
      return fail("claude printed a line that is not a JSON object, or one too deep or too large");
    }
    const auto type = string_of(line, "type");
    if (type == "control_response") return read_control_response(member_of(line, "response"));
    if (type == "control_request") answer_request(line);
    if (type == "result") read_result(line);
    note_limits(line);
    const bool begins = string_of(member_of(line, "event"), "type") == "message_start";
    switch (state_) {
      case state::starting:
      case state::ready:
      case state::dead: return;
      case state::replaying: return read_acknowledgement(line);
      case state::answering: return read_answer(line, begins);
      case state::awaiting_tool_results:
      case state::idle:
        if (begins) fail("claude went on by itself");
        return;
      case state::rewinding:
        if (begins && !runs_) return fail("claude went on by itself");
        if (type == "result") rewind_step();
    }
  }

  /// Also of a turn for which nobody waits any more: the CLI tells of a limit when it changes.
  void note_limits(const json& line) {
    if (limits_ == nullptr) return;
    for (auto& window : decode_usage_windows(line)) {
      if (window.status == "rejected" && !window.extra_usage) turn_.refused_by_plan = true;
      limits_->note(std::move(window), turn_.asked_at);
    }
  }

  void read_result(const json& line) {
    runs_ = false;
    const auto& cost = member_of(line, "total_cost_usd");
    if (cost.is_number()) service_.cost = cost.get<double>();
  }

  void read_answer(const json& line, bool begins) {
    const bool over = decoder_.finished() && !was_cut();
    if (begins && (over || tools_.has_unclaimed_results())) return fail("claude went on by itself");
    if (string_of(line, "subtype") == "api_retry") ++turn_.retries;
    std::vector<event> decoded;
    decoder_.decode(line, decoded);
    for (auto& what : decoded) turn_.events.push_back(std::move(what));
    if (was_cut()) {  // or it goes on
      connection_.child().signal_group(turn_.agent ? SIGINT : SIGKILL);
    }
  }

  /// While history is replayed, each user message is acknowledged by a result.
  void read_acknowledgement(const json& line) {
    if (string_of(line, "type") != "result") return;
    if (boolean_of(line, "is_error")) {
      return fail("claude refused the history: " + string_of(line, "result"));
    }
    replay_next({});
  }

  void read_control_response(const json& response) {
    if (state_ == state::starting) state_ = state::ready;
    const auto id = string_of(response, "request_id");
    if (id == rewind_.id()) return read_rewound(response);
    if (id == interrupt_id) {
      rewind_.interrupting = false;
      if (state_ == state::rewinding) rewind_step();
    }
    if (id == question_id) initialize_response_[question_id] = response;
    if (id != opening_id && id != settings_id) return;
    if (string_of(response, "subtype") == "error") {
      return fail("claude refused the conversation: " + string_of(response, "error"));
    }
    if (id == opening_id) initialize_response_ = member_of(response, "response");
    if (id != settings_id) return;
    sent_settings_.acknowledged = true;
    answer_calls();
  }

  void answer_request(const json& asked) {
    connection_.send(tools_.take_request(
        asked, [this](const std::string& id) { return decoder_.client_call_id(id); }));
    answer_calls();
  }

  void fail(const std::string& reason) {
    if (state_ == state::dead) return;
    state_ = state::dead;
    turn_.failed_before_first_event = turn_.events.empty() && !turn_.event_delivered;
    std::vector<event> decoded;
    decoder_.fail(api_error(error_kind::bad_gateway, connection_.explain(reason)), decoded);
    for (auto& what : decoded) turn_.events.push_back(std::move(what));
  }

  cli_connection connection_;
  limit_board* limits_;
  service_record service_;
  state state_ = state::starting;
  steady_time waits_since_ = service_.started;  ///< for its start, or for a step back
  json initialize_response_;
  client_tools tools_;
  turn_settings sent_settings_;  ///< that it got last
  bool runs_ = false;            ///< its `result` is still to come
  conversation_cursor cursor_;
  rewind_state rewind_;
  process_turn turn_;
  turn_decoder decoder_{0};  ///< stays for the calls that await their results
  refusal refused_ = refusal::none;
};

//================================================================================================
// [20] pool - which process serves a request, the cap, the queue, and the end of processes
// uses: text, errors, log, options, conversation, cli_protocol, cli_command, process,
//       claude_process | thread-safe
//================================================================================================

/// Processes by state. Their sum never exceeds the cap.
struct process_counts {
  int spare = 0;      ///< ready, or soon
  int warm = 0;       ///< of the spares: have answered already
  int busy = 0;       ///< serve a request
  int idle = 0;       ///< hold a conversation that may go on
  int parked = 0;     ///< of the idle: wait for the results of a client's tools
  int rewinding = 0;  ///< of the idle: take back what nobody wants any more
  int stopping = 0;   ///< signalled to end, not yet gone
  int maximum = 0;
  std::uint64_t started = 0;             ///< since the proxy began
  int queued = 0;                        ///< requests that wait for a process
  std::chrono::milliseconds stalled{0};  ///< how long requests wait and nothing has moved
};

/// As many processes as the memory carries, at 250 MiB each and at most 32.
inline int default_max_processes(std::uint64_t memory_bytes) {
  constexpr std::uint64_t each = 250ULL * 1024 * 1024;
  return static_cast<int>(std::clamp<std::uint64_t>(memory_bytes / each, 2, 32));
}

/// How a process came to a request. `none`: it has none. `continued`: it held the conversation;
/// `rewound`: messages were taken back; `spare`: it held nothing; `started`: it was started for the
/// request.
enum class process_origin { none, continued, rewound, spare, started };

inline std::string_view name_of(process_origin origin) {
  switch (origin) {
    case process_origin::continued: return "continued";
    case process_origin::rewound: return "rewound";
    case process_origin::spare: return "spare";
    case process_origin::started: return "started";
    case process_origin::none: break;
  }
  return {};
}

/// A way to bring a process to a request's conversation.
struct way {
  process_origin origin = process_origin::started;
  std::size_t keep = 0;       ///< messages of the request that the process holds, and keeps
  std::size_t rewound = 0;    ///< the user's messages that are taken back
  std::size_t replayed = 0;   ///< messages of the history that the process gets
  std::size_t discarded = 0;  ///< messages of another conversation, to be replayed when it goes on
  bool abandons_calls = false;  ///< another conversation's calls get no results then
};

/// What ways cost, in milliseconds, as measured on the real CLI.
struct way_costs {
  static constexpr double step_back = 3;
  static constexpr double message = 2.5;  ///< of the history
  static constexpr double initialize = 50;
  static constexpr double start = 450;
  /// A process that awaits results is taken for another conversation only where there is nothing
  /// else: the model's thoughts would be lost.
  static constexpr double abandoned_calls = 10'000;
};

/// What a way costs in milliseconds, with the replays that it causes for other conversations.
inline double cost_of(const way& one) {
  double cost = way_costs::message * static_cast<double>(one.replayed + one.discarded) +
                way_costs::step_back * static_cast<double>(one.rewound);
  const bool fresh = one.origin == process_origin::spare || one.origin == process_origin::started;
  if (fresh) cost += way_costs::initialize;
  if (one.origin == process_origin::started) cost += way_costs::start;
  if (one.abandons_calls) cost += way_costs::abandoned_calls;
  return cost;
}

/// How far a process may be taken back.
enum class rewind_reach { anywhere, to_an_answer, nowhere };

/// How far this `claude` takes messages back: an older one does less, and all its processes alike.
/// Thread-safe.
class rewind_support {
 public:
  explicit rewind_support(const options& settings) : settings_(settings) { reset(); }

  rewind_reach reach() const { return reach_; }

  /// The program may have become another.
  void reset() {
    reach_ = settings_.reuse_processes ? rewind_reach::anywhere : rewind_reach::nowhere;
  }

  /// Learns from a process that would not take a message back.
  void learn(const claude_process& process) {
    using refusal = claude_process::refusal;
    if (process.refused() == refusal::none || reach_ == rewind_reach::nowhere) return;
    const bool first = process.refused() == refusal::first_message;
    if (first && reach_ == rewind_reach::to_an_answer) return;
    reach_ = first ? rewind_reach::to_an_answer : rewind_reach::nowhere;
    settings_.log.info(first
                           ? "this claude does not take back the first message of a conversation: "
                             "each conversation has a process of its own"
                           : "this claude takes no message back: each conversation has a process "
                             "of its own, and one that is changed another");
  }

 private:
  const options& settings_;
  std::atomic<rewind_reach> reach_{rewind_reach::nowhere};
};

/// What a request wants of the pool. Owned by the request's turn.
struct process_demand {
  launch_profile profile;
  std::string client;                         ///< the queue is fair between clients
  const conversation_trace* trace = nullptr;  ///< of the request; null: no conversation
  bool brings_results = false;                ///< all that is new are results of parked calls
  bool fresh = false;                         ///< of a process that holds nothing
  steady_time asked = std::chrono::steady_clock::now();

  std::size_t history() const { return trace == nullptr ? 0 : trace->ends.size() - 1; }
};

/// The way by which a process that holds a conversation of the demand's identity can serve it;
/// nullopt when there is none. `parked`: it waits for the results of tools.
inline std::optional<way> find_way(const conversation_cursor& cursor, bool parked,
                                   const process_demand& demand, rewind_reach reach) {
  const auto& held = cursor.held;
  const auto history = demand.history();
  const auto common = std::min(count_common(held, *demand.trace), history);
  const bool whole = common == held.ends.size();
  if (whole && common > 0 && (!parked || (demand.brings_results && common == history))) {
    way on{process_origin::continued};
    on.keep = common;
    on.replayed = history - common;
    return on;
  }
  way back{process_origin::rewound};
  back.replayed = history;
  back.discarded = held.ends.size() - common;
  back.abandons_calls = parked && common == 0;
  if (held.ends.empty()) return back;
  const auto first = std::find_if(cursor.marks.rbegin(), cursor.marks.rend(),
                                  [&](const turn_mark& mark) { return mark.message <= common; });
  const bool none = first == cursor.marks.rend() || reach == rewind_reach::nowhere;
  if (none || (first->message == 0 && reach == rewind_reach::to_an_answer)) return std::nullopt;
  back.keep = first->message;
  back.rewound = static_cast<std::size_t>(first - cursor.marks.rbegin()) + 1;
  back.replayed = history - back.keep;
  return back;
}

class pool;

/// The right to use one process. When it goes the process is taken back to where it may serve
/// others, or ended. Move-only; must not outlive the pool.
class lease {
 public:
  lease(pool& owner, process_demand demand, std::unique_ptr<claude_process> process, way taken)
      : pool_(&owner), demand_(std::move(demand)), process_(std::move(process)), way_(taken) {}
  lease(lease&&) noexcept = default;
  lease& operator=(lease&&) = delete;
  inline ~lease();

  claude_process& process() const { return *process_; }

  const way& taken() const { return way_; }

 private:
  pool* pool_;
  process_demand demand_;
  std::unique_ptr<claude_process> process_;
  way way_;
};

/// A process that no request has.
struct kept_process {
  using state = claude_process::state;

  launch_profile profile;
  std::unique_ptr<claude_process> process;
  state last_state;                                      ///< as it was when it was last read
  steady_time since = std::chrono::steady_clock::now();  ///< it is in this state
  bool read = false;  ///< the janitor reads what it says: nobody else may take it
  bool ends = false;  ///< and ends it then

  bool is_unused() const { return last_state == state::starting || last_state == state::ready; }
  bool is_changing() const {
    return last_state == state::starting || last_state == state::rewinding;
  }

  /// A start of over 5 s counts as hung: another may begin in its place.
  bool is_starting() const {
    constexpr std::chrono::seconds slow_start{5};  // usual: 0.5 s
    return last_state == state::starting && std::chrono::steady_clock::now() - since < slow_start;
  }

  /// On its way to where it may serve others; one that takes longer than a start is not waited for.
  bool returns_soon() const {
    constexpr std::chrono::milliseconds max_return{500};
    return last_state == state::rewinding && std::chrono::steady_clock::now() - since < max_return;
  }
};

/// A process for one request, or why there is none.
struct grant {
  std::unique_ptr<claude_process> process;
  way taken;
  std::optional<api_error> failure = {};
};

/// How a process could serve the request, if it can.
inline std::optional<way> way_of(const kept_process& kept, const process_demand& demand,
                                 rewind_reach reach) {
  using state = claude_process::state;
  const auto& process = *kept.process;
  const bool parked = kept.last_state == state::awaiting_tool_results;
  if (kept.ends || !(kept.profile == demand.profile)) return std::nullopt;
  way spare{process_origin::spare};
  spare.replayed = demand.history();
  if (kept.last_state == state::ready) return spare;
  const bool holds = kept.last_state == state::idle || parked;
  if (!holds || demand.fresh || demand.trace == nullptr) return std::nullopt;
  if (process.cursor().held.identity != demand.trace->identity) return std::nullopt;
  // What an agent did to files is not taken back, nor the day that the prompt names.
  const bool stays = process.is_agent() || !process.is_of_today();
  if (stays && process.cursor().held.ends.empty()) return std::nullopt;
  return find_way(process.cursor(), parked, demand, stays ? rewind_reach::nowhere : reach);
}

/// A request that waits for a process. Owned by its ticket.
struct waiting_request {
  const process_demand* demand;
  steady_time since = std::chrono::steady_clock::now();
  std::optional<grant> granted = {};
  wake_signal wake = {};

  /// Others have been served before it for long enough.
  bool is_overtaken() const {
    constexpr std::chrono::seconds max_overtaking{3};
    return std::chrono::steady_clock::now() - since > max_overtaking;
  }
};

/// The requests that wait, and what each client holds already: nobody's many requests hold up
/// another's one. Guarded by the pool's lock.
class fair_queue {
 public:
  explicit fair_queue(int max_processes) : max_processes_(max_processes) {}

  int max_processes() const { return max_processes_; }
  int busy() const { return busy_; }
  bool empty() const { return requests_.empty(); }
  std::size_t size() const { return requests_.size(); }

  /// Where there are several client keys, none may hold all processes or all places in the queue.
  void share_between(std::size_t keys) { shared_ = keys > 1; }

  /// Most of a number of processes or places that one client may hold at once.
  int share_of_client(int all) const {
    return shared_ ? std::max(1, std::min(all * 3 / 4, all - 1)) : all;
  }

  /// The client holds as many processes as it may: its requests wait, and block no other's.
  bool is_capped(const std::string& client) const { return left_for(client) <= 0; }

  /// As many requests may wait as `--max-queue` says, beside those for which there is room.
  bool is_full(const std::string& client, int max_queue) const {
    const auto own = std::count_if(requests_.begin(), requests_.end(), [&](const auto* request) {
      return request->demand->client == client;
    });
    return static_cast<int>(requests_.size()) >= max_processes_ - busy_ + max_queue ||
           own >= left_for(client) + share_of_client(max_queue);
  }

  void add(waiting_request& request) {
    if (requests_.empty()) last_moved_ = std::chrono::steady_clock::now();
    requests_.push_back(&request);
  }

  void remove(waiting_request& request) { requests_.remove(&request); }

  void serve(waiting_request& request, grant granted) {
    requests_.remove(&request);
    request.granted = std::move(granted);
    request.wake.raise();
  }

  void note_taken(const std::string& client) {
    last_moved_ = std::chrono::steady_clock::now();
    if (requests_.empty()) served_.clear();
    served_[client] = last_moved_;
    ++busy_of_[client];
    ++busy_;
  }

  void note_returned(const std::string& client) {
    --busy_;
    if (--busy_of_[client] == 0) busy_of_.erase(client);
  }

  /// How long requests wait and nothing has moved.
  std::chrono::milliseconds stalled() const {
    if (requests_.empty()) return std::chrono::milliseconds(0);
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() -
                                                                 last_moved_);
  }

  /// The requests that may have a process, in their order: first those of the client that holds the
  /// fewest, then of the one that was served the longest ago, then the one that waits the longest.
  std::vector<waiting_request*> in_line() const {
    std::vector<std::tuple<int, steady_time, waiting_request*>> ranked;
    auto held = busy_of_;
    for (auto* request : requests_) {
      const auto& client = request->demand->client;
      const int rank = held[client]++;
      const auto served = served_.find(client);
      const auto last = served == served_.end() ? steady_time{} : served->second;
      if (rank < share_of_client(max_processes_)) ranked.emplace_back(rank, last, request);
    }
    const auto place = [](const auto& one) { return std::tie(std::get<0>(one), std::get<1>(one)); };
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](const auto& a, const auto& b) { return place(a) < place(b); });
    std::vector<waiting_request*> line;
    for (const auto& entry : ranked) line.push_back(std::get<waiting_request*>(entry));
    return line;
  }

  /// The profile of which more processes are waited for than are starting.
  std::optional<launch_profile> missing(std::vector<launch_profile> starting) const {
    for (const auto* request : in_line()) {
      const auto& profile = request->demand->profile;
      const auto own = std::find(starting.begin(), starting.end(), profile);
      if (own == starting.end()) return profile;
      starting.erase(own);
    }
    return std::nullopt;
  }

  /// Tells the first request that waits for such a process why there is none. False for none.
  bool refuse(const launch_profile& profile, const api_error& failure) {
    const auto request = std::find_if(requests_.begin(), requests_.end(), [&](const auto* waiting) {
      return waiting->demand->profile == profile;
    });
    if (request == requests_.end()) return false;
    serve(**request, grant{nullptr, {}, failure});
    return true;
  }

 private:
  int left_for(const std::string& client) const {
    const auto used = busy_of_.find(client);
    return share_of_client(max_processes_) - (used == busy_of_.end() ? 0 : used->second);
  }

  int max_processes_;
  std::list<waiting_request*> requests_;  ///< in the order of their arrival
  int busy_ = 0;
  std::map<std::string, int> busy_of_;         ///< the same by client
  std::map<std::string, steady_time> served_;  ///< by client, since requests last waited
  bool shared_ = false;                        ///< between several client keys
  steady_time last_moved_{};                   ///< when a request last got a process
};

/// Of which launch profiles spares are kept, and when the next may start. Guarded by the pool's
/// lock.
class spare_plan {
 public:
  void keep(int spares) { wanted_ = spares; }

  /// The profile was asked for. The first ones have one spare more than the others, or one instead
  /// of none. Another takes such a place only when nobody has asked for its owner for a while: to
  /// follow each request would start a process and end another for it. `hold` is that while.
  void remember(const launch_profile& profile, const std::string& client,
                std::chrono::milliseconds hold) {
    // A server that a client has registered runs as long as that client uses it, not as a spare.
    if (profile.agent && profile.agent->client_servers) return;
    const auto known = find_or_add(profile, profile.agent ? client : std::string());
    known->asked = std::chrono::steady_clock::now();
    const auto first = profiles_.begin();
    const auto without_extra = first + wanted_ % static_cast<std::ptrdiff_t>(profiles_.size());
    if (known < without_extra || without_extra == first) return;
    const auto oldest = std::min_element(first, without_extra, asked_earlier);
    if (known->asked - oldest->asked >= hold) std::swap(*oldest, *known);
  }

  void forget(const std::set<std::string>& clients) {
    profiles_.erase(
        std::remove_if(profiles_.begin(), profiles_.end(),
                       [&](const asked_profile& asked) { return clients.count(asked.client) > 0; }),
        profiles_.end());
  }

  /// The wanted spares are dealt out to the remembered profiles in turn.
  int share_of(const launch_profile& profile) const {
    const auto place = static_cast<int>(place_of(profile));
    const auto all = static_cast<int>(profiles_.size());
    if (place == all) return 0;
    return wanted_ / all + (place < wanted_ % all ? 1 : 0);
  }

  /// The first profile of which `count` tells fewer spares than its share.
  template <class Count>
  std::optional<launch_profile> missing(Count count) const {
    for (const auto& asked : profiles_) {
      if (count(asked.profile) < share_of(asked.profile)) return asked.profile;
    }
    return std::nullopt;
  }

  void note_taken() { last_taken_ = std::chrono::steady_clock::now(); }
  void note_ready() { failures_ = 0; }
  void note_failure() {
    failures_ = std::min(failures_ + 1, 6);
    const std::chrono::seconds delay(1 << (failures_ - 1));
    not_before_ = std::chrono::steady_clock::now() + delay;
  }

  /// When the next spare may start. A burst of requests comes first; new spares would only take its
  /// processor time.
  steady_time due() const {
    constexpr std::chrono::milliseconds refill_delay{200};
    return std::max(last_taken_ + refill_delay, not_before_);
  }

 private:
  struct asked_profile {
    launch_profile profile;
    std::string client;  ///< whose agents it is for; empty: for all, or for those without a key
    steady_time asked;
  };

  static constexpr std::size_t max_profiles = 4;

  static bool asked_earlier(const asked_profile& a, const asked_profile& b) {
    return a.asked < b.asked;
  }

  /// A new one takes the place of the one without a further spare that was asked for longest ago.
  std::deque<asked_profile>::iterator find_or_add(const launch_profile& profile,
                                                  const std::string& client) {
    const auto known = profiles_.begin() + place_of(profile);
    if (known != profiles_.end()) return known;
    if (profiles_.size() == max_profiles) {
      const auto without_extra = profiles_.begin() + wanted_ % static_cast<int>(max_profiles);
      profiles_.erase(std::min_element(without_extra, profiles_.end(), asked_earlier));
    }
    return profiles_.insert(profiles_.end(), asked_profile{profile, client, {}});
  }

  std::ptrdiff_t place_of(const launch_profile& profile) const {
    const auto known = std::find_if(profiles_.begin(), profiles_.end(),
                                    [&](const auto& asked) { return asked.profile == profile; });
    return known - profiles_.begin();
  }

  std::deque<asked_profile> profiles_;
  int wanted_ = 0;
  int failures_ = 0;
  steady_time last_taken_{};
  steady_time not_before_{};
};

/// Processes that were signalled to end and are not yet gone. Guarded by the pool's lock.
class stopping_processes {
 public:
  std::size_t size() const { return processes_.size(); }

  /// Ends a process without waiting for it; it is killed when it does not end within `grace`.
  void add(claude_process& process, std::chrono::milliseconds grace) {
    const auto policy = process.ending();
    auto child = process.take_child();
    if (policy.close_input) child->input.reset();
    child->signal_group(policy.signal);
    processes_.push_back({std::move(child), std::chrono::steady_clock::now() + grace});
  }

  void reap() {
    const auto now = std::chrono::steady_clock::now();
    for (auto one = processes_.begin(); one != processes_.end();) {
      if (now >= one->kill_at) {
        one->child->signal_group(SIGKILL);
        one->kill_at = steady_time::max();
      }
      one = one->child->try_reap() ? processes_.erase(one) : std::next(one);
    }
  }

 private:
  struct stopping_process {
    std::unique_ptr<child_process> child;
    steady_time kill_at;
  };

  std::list<stopping_process> processes_;
};

/// No more start at once than there are processors: each takes one for half a second.
struct start_counts {
  const int max = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  int under_way = 0;        ///< the janitor has no lock meanwhile
  std::uint64_t total = 0;  ///< since the proxy began
};

/// What a process is started from.
struct cli_program {
  std::string path;
  program_file file = {};
  std::optional<std::string> login_flag = {};  ///< see `find_login_flag`; nullopt: not asked yet
};

/// Why no process could be started in the directory, and what to do.
inline api_error explain_start(const std::system_error& failure, const options& settings,
                               const std::string& directory) {
  api_error error(error_kind::unavailable, std::string(failure.what()));
  if (!is_missing(failure) && !settings.claude_path.empty()) return error;
  error.message = say_missing(settings);
  error.code = "claude_not_found";
  error.retry_is_futile = true;
  if (directory.empty() || ::access(directory.c_str(), X_OK) == 0) return error;
  error.message = "the working directory of claude cannot be entered: " + directory;
  error.code = "working_directory_missing";
  return error;
}

/// Starts processes, from the operator's program, or where that has changed and does not work from
/// the last one that did, as long as it is there. Thread-safe.
class cli_programs {
 public:
  cli_programs(const options& settings, std::shared_ptr<const child_guard> guard)
      : settings_(settings),
        guard_(std::move(guard)),
        limits_(settings.log),
        latest_{settings.claude_path} {}

  /// What the processes have reported of the subscription.
  const limit_board& limits() const { return limits_; }

  cli_program current() {
    const auto& path = settings_.claude_path;
    const cli_program found{path, find_program_file(path, settings_.environment)};
    const std::lock_guard<std::mutex> lock(mutex_);
    if (found.file == latest_.file) return warning_.empty() || !is_there() ? latest_ : worked_;
    warning_.clear();
    return latest_ = found;
  }

  /// What a process that is not bare is started with. The program is asked for it once.
  std::string login_flag_of(const cli_program& program) {
    if (program.login_flag) return *program.login_flag;
    const auto flag = find_login_flag(ask_help(program.path));
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto* known : {&latest_, &worked_}) {
      if (known->file == program.file) known->login_flag = flag;
    }
    return flag;
  }

  /// Neither a process nor a failure where another program is to be started.
  grant start(const launch_profile& profile) {
    const auto program = current();
    auto settings = profile.fallback ? with_fallback(settings_) : settings_;
    settings.claude_path = program.path;
    grant made;
    command what;
    try {
      const bool bare = is_bare(settings, profile);
      what = make_command(settings, profile, bare ? std::string() : login_flag_of(program));
      made.process = std::make_unique<claude_process>(
          what, *guard_, profile.fallback ? nullptr : &limits_, program.file);
      return made;
    } catch (const std::system_error& why) {
      made.failure = explain_start(why, settings, what.working_directory);
    } catch (const std::exception& why) {
      made.failure = api_error(error_kind::internal, why.what());
    }
    if (reject(program.file, made.failure->message)) made.failure.reset();
    return made;
  }

  /// A turn that was answered counts; until there was one, the answer to `initialize` does.
  void note_use(const claude_process& process) {
    using state = claude_process::state;
    const auto now = process.now();
    const bool answered = now == state::idle || now == state::awaiting_tool_results;
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool first = worked_.path.empty() && !process.initialize_response().is_null();
    if (!(answered || first) || process.program() != latest_.file) return;
    if (worked_.file == latest_.file && warning_.empty()) return;
    worked_ = {latest_.file.path, latest_.file, latest_.login_flag};
    warning_.clear();
  }

  /// It has failed before it answered anything. True when another is used in its place.
  bool reject(const program_file& file, const std::string& why) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (file == worked_.file || !is_there()) return false;
    if (file != latest_.file || !warning_.empty()) return true;
    warning_ = latest_.path + " has changed and does not work (" + why + "); " + worked_.path +
               ", the last one that worked, answers until it changes again";
    settings_.log.warning(warning_);
    return true;
  }

  /// Why the operator's program is not used; empty where it is.
  std::string warning() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return warning_;
  }

 private:
  bool is_there() const {
    return !worked_.path.empty() && find_program_file(worked_.path, {}) == worked_.file;
  }

  std::string ask_help(const std::string& path) const {
    auto settings = settings_;
    settings.claude_path = path;
    try {
      return run_claude(settings, {"--help"}, *guard_, std::chrono::seconds(5)).output;
    } catch (const std::exception&) {  // the start of a process says why
      return {};
    }
  }

  const options& settings_;
  std::shared_ptr<const child_guard> guard_;
  limit_board limits_;
  mutable std::mutex mutex_;  ///< guards all below
  cli_program latest_;        ///< the operator's
  cli_program worked_;        ///< by the path of its file
  std::string warning_;
};

/// Owns every process. Requests take them and give them back; one thread, the janitor, starts them
/// and reads what they say while nobody has them. No lock is held while bytes are read.
class pool {
 public:
  class ticket;

  pool(const options& settings, std::shared_ptr<const child_guard> guard)
      : settings_(settings),
        programs_(settings, std::move(guard)),
        queue_(settings.max_processes > 0 ? settings.max_processes
                                          : default_max_processes(physical_memory())),
        support_(settings) {
    queue_.share_between(settings.api_keys.size());
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

  /// Starts the janitor. It keeps spares, also of models asked for, once `keep_spares` was called.
  void start() {
    janitor_ = std::thread([this] { run_janitor(); });
  }

  /// Starts to keep spares; this model has priority, and then that of the fallback: a request that
  /// the plan has refused shall not wait for a start, too.
  void keep_spares(const std::string& model) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      spares_.keep(settings_.spares);
      support_.reset();
      spares_.remember({model, std::nullopt}, {}, settings_.spare_hold);
      const auto& other = settings_.fallback_model.empty() ? model : settings_.fallback_model;
      if (settings_.fallback) {
        spares_.remember({other, std::nullopt, true}, {}, settings_.spare_hold);
      }
    }
    wake_.raise();
  }

  void share_between(std::size_t keys) {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.share_between(keys);
    serve_queue();
    wake_.raise();
  }

  /// Ends what this client's agents left: a server that they had may be gone. What answers now ends
  /// after its answer.
  void end_agents(const std::string& client) {
    end_kept({client}, [](const kept_process& kept) { return kept.profile.agent.has_value(); });
  }

  /// Ends all that was kept for clients whose keys are no longer valid; what answers now ends after
  /// its answer.
  void forget(const std::set<std::string>& clients) {
    end_kept(clients, [](const kept_process&) { return true; });
    const std::lock_guard<std::mutex> lock(mutex_);
    spares_.forget(clients);
  }

  cli_programs& programs() { return programs_; }

  process_counts counts() const {
    using state = claude_process::state;
    const std::lock_guard<std::mutex> lock(mutex_);
    process_counts sum;
    for (const auto& kept : kept_) {
      ++(kept.is_unused() ? sum.spare : sum.idle);
      sum.warm += kept.last_state == state::ready ? 1 : 0;
      sum.parked += kept.last_state == state::awaiting_tool_results ? 1 : 0;
      sum.rewinding += kept.last_state == state::rewinding ? 1 : 0;
    }
    sum.spare += starts_.under_way;
    sum.busy = queue_.busy();
    sum.stopping = static_cast<int>(stopping_.size());
    sum.maximum = queue_.max_processes();
    sum.queued = static_cast<int>(queue_.size());
    sum.started = starts_.total;
    sum.stalled = queue_.stalled();
    return sum;
  }

 private:
  friend class lease;
  using kept_processes = std::list<kept_process>;

  static constexpr std::chrono::milliseconds reap_interval{5};
  static constexpr std::chrono::milliseconds watch_interval{100};

  // ---- the choice: needs the lock, as all below to the janitor's part ---------------------------

  bool is_at_cap() const {
    const auto kept = static_cast<int>(kept_.size() + stopping_.size());
    return queue_.busy() + starts_.under_way + kept >= queue_.max_processes();
  }

  /// A process for the request, by the cheapest way; nullopt where that is to start or to wait.
  /// `first` is first in line of those that wait longer, and for whom there was none.
  std::optional<grant> try_grant(const process_demand& demand, const waiting_request* first) {
    if (queue_.is_capped(demand.client)) return std::nullopt;
    // At the cap a free process goes to the first in line. Others may go on with their own
    // conversations, until the first in line has waited for 3 s.
    const bool first_has_priority = first != nullptr && is_at_cap();
    if (first_has_priority && first->is_overtaken()) return std::nullopt;
    const bool own_only = first_has_priority && first->demand->client != demand.client;
    double least = cost_of_start(demand);
    auto best = kept_.end();
    grant found;
    for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
      const auto one = way_of(*kept, demand, support_.reach());
      if (!one || cost_of(*one) >= least || (own_only && one->origin != process_origin::continued))
        continue;
      if (!kept->read && !kept->process->alive()) continue;
      least = cost_of(*one);
      best = kept;
      found.taken = *one;
    }
    if (best == kept_.end() || best->read) return std::nullopt;  // the janitor has it in a moment
    found.process = std::move(best->process);
    kept_.erase(best);
    queue_.note_taken(demand.client);
    if (found.taken.origin == process_origin::spare) spares_.note_taken();
    wake_.raise();
    return found;
  }

  void serve_queue() {
    const waiting_request* first_in_line = nullptr;
    for (auto* request : queue_.in_line()) {
      if (auto granted = try_grant(*request->demand, first_in_line)) {
        queue_.serve(*request, std::move(*granted));
      } else if (first_in_line == nullptr) {
        first_in_line = request;
      }
    }
  }

  void give_back(const process_demand& demand, std::unique_ptr<claude_process> process) {
    using state = claude_process::state;
    programs_.note_use(*process);
    process->release(support_.reach() != rewind_reach::nowhere);
    const bool worn = process->now() == state::idle && process->is_worn();
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.note_returned(demand.client);
    support_.learn(*process);
    const auto ended = ended_.find(demand.client);
    const bool outlived = ended != ended_.end() && demand.asked < ended->second;
    const bool stays = process->now() != state::dead && !worn && !outlived && !closing_;
    if (stays && settings_.idle_timeout.count() > 0) {
      const auto now = process->now();
      kept_.push_back({demand.profile, std::move(process), now});
    } else {
      stopping_.add(*process, settings_.stop_grace);
    }
    serve_queue();
    wake_.raise();
  }

  // ---- the end of processes ---------------------------------------------------------------------

  /// Ends it now, or when the janitor has read what it says.
  kept_processes::iterator end(kept_processes::iterator kept) {
    kept->ends = true;
    if (kept->read) return std::next(kept);
    stopping_.add(*kept->process, settings_.stop_grace);
    wake_.raise();
    return kept_.erase(kept);
  }

  /// Ends what these clients left, where the condition holds; what answers now is ended afterwards.
  template <class Condition>
  void end_kept(const std::set<std::string>& clients, Condition holds) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& client : clients) ended_[client] = std::chrono::steady_clock::now();
    for (auto kept = kept_.begin(); kept != kept_.end();) {
      const bool theirs = std::any_of(clients.begin(), clients.end(), [&](const auto& client) {
        return is_trace_of(kept->process->cursor().held, client);
      });
      kept = theirs && holds(*kept) ? end(kept) : std::next(kept);
    }
  }

  /// What is ended to make room: the conversation that was asked for least recently costs only that
  /// it is replayed, least of all one that no request waits for; one whose calls wait for results
  /// costs more; a spare of another model goes last. The end of the list when there is nothing.
  kept_processes::iterator least_useful() {
    using state = claude_process::state;
    const auto waiting = queue_.in_line();
    constexpr int never = 4;
    const auto rank = [&](const kept_process& kept) {
      if (kept.read || kept.ends || kept.is_starting() || kept.returns_soon()) return never;
      if (kept.last_state == state::ready) return 3;
      if (kept.last_state == state::awaiting_tool_results) return 2;
      const bool awaited = std::any_of(waiting.begin(), waiting.end(), [&](const auto* request) {
        return way_of(kept, *request->demand, support_.reach()).has_value();
      });
      return awaited ? 1 : 0;
    };
    int least = never;
    auto found = kept_.end();
    for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
      const int own = rank(*kept);
      if (own < least) found = kept;
      least = std::min(least, own);
    }
    return found;
  }

  /// To start a process, and to make room for it, in milliseconds.
  double cost_of_start(const process_demand& demand) {
    way start;
    start.replayed = demand.history();
    const auto ended = is_at_cap() ? least_useful() : kept_.end();
    if (ended == kept_.end()) return cost_of(start);
    start.discarded = ended->process->cursor().held.ends.size();
    start.abandons_calls = ended->last_state == claude_process::state::awaiting_tool_results;
    return cost_of(start);
  }

  // ---- spares -----------------------------------------------------------------------------------

  /// At the cap an old conversation makes room for one spare, so that a new client need not wait;
  /// the latest conversation stays.
  std::optional<launch_profile> missing_spare() const {
    const auto unused = count_kept([](const kept_process& kept) { return kept.is_unused(); });
    if (is_at_cap() && (unused > 0 || kept_.size() < 2)) return std::nullopt;
    return spares_.missing([&](const launch_profile& profile) { return count_spares(profile); });
  }

  template <class Condition>
  int count_kept(Condition holds) const {
    return static_cast<int>(std::count_if(kept_.begin(), kept_.end(), holds));
  }

  int count_spares(const launch_profile& profile) const {
    return count_kept(
        [&](const kept_process& kept) { return kept.is_unused() && kept.profile == profile; });
  }

  // ---- the janitor: all below runs in its thread ------------------------------------------------

  void run_janitor() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      note_states();
      serve_queue();
      end_unwanted();
      stopping_.reap();
      if (closing_ && stopping_.size() == 0 && queue_.busy() == 0) return;
      const auto due = start_next(lock);
      std::vector<pollfd> entries{{wake_.fd(), POLLIN, 0}};
      for (const auto& kept : kept_) kept.process->add_poll_entries(entries);
      lock.unlock();
      ::poll(entries.data(), static_cast<nfds_t>(entries.size()), poll_timeout(due));
      wake_.clear();
      lock.lock();
      read_kept(lock);
    }
  }

  void read_kept(std::unique_lock<std::mutex>& lock) {
    for (auto& kept : kept_) {
      kept.read = true;
      lock.unlock();
      kept.process->pump();
      lock.lock();
      kept.read = false;
    }
  }

  void note_states() {
    using state = claude_process::state;
    for (auto& kept : kept_) {
      const auto before = std::exchange(kept.last_state, kept.process->now());
      if (kept.last_state == before) continue;
      kept.since = std::chrono::steady_clock::now();
      if (kept.last_state == state::ready) spares_.note_ready();
      if (kept.last_state == state::idle && kept.process->is_worn()) kept.ends = true;
      if (kept.last_state != state::dead) continue;
      support_.learn(*kept.process);
      if (before != state::starting && before != state::ready) continue;
      while (const auto happened = kept.process->pop()) {
        const auto* failed = std::get_if<turn_failed>(&*happened);
        if (!failed || programs_.reject(kept.process->program(), failed->error.message)) continue;
        fail_start(kept.profile, failed->error, before == state::starting);
      }
    }
  }

  void end_unwanted() {
    const auto oldest = std::chrono::steady_clock::now() - settings_.idle_timeout;
    for (auto kept = kept_.begin(); kept != kept_.end();) {
      kept = closing_ || kept->ends || is_unwanted(*kept, oldest) ? end(kept) : std::next(kept);
    }
  }

  bool is_unwanted(const kept_process& kept, steady_time oldest) const {
    using state = claude_process::state;
    switch (kept.last_state) {
      case state::starting:
        return queue_.empty() && count_spares(kept.profile) > spares_.share_of(kept.profile);
      case state::ready: {
        const auto ready = count_kept([&](const kept_process& other) {
          return other.last_state == state::ready && other.profile == kept.profile;
        });
        return ready > spares_.share_of(kept.profile) || !kept.process->is_of_today();
      }
      case state::awaiting_tool_results:
      case state::idle: return kept.since < oldest;
      case state::rewinding: return false;
      case state::replaying:
      case state::answering:
      case state::dead: return true;
    }
    return true;
  }

  /// Starts a process if one is due: for a request that waits, else a spare. Returns when to look
  /// again.
  steady_time start_next(std::unique_lock<std::mutex>& lock) {
    const auto now = std::chrono::steady_clock::now();
    const auto next = next_look(now);
    std::vector<launch_profile> starting;
    for (const auto& kept : kept_) {
      if (kept.is_starting()) starting.push_back(kept.profile);
    }
    if (closing_ || static_cast<int>(starting.size()) >= starts_.max) return next;
    auto profile = queue_.missing(std::move(starting));
    if (!profile && queue_.in_line().empty()) {
      profile = missing_spare();
      if (profile && now < spares_.due()) return std::min(spares_.due(), next);
    }
    if (!profile) return next;
    if (!is_at_cap()) {
      launch(*profile, lock);
      return now;
    }
    // A slow start is no reason to end a conversation for a second one.
    const auto starts = [&](const kept_process& kept) {
      return kept.last_state == claude_process::state::starting && kept.profile == *profile;
    };
    const bool waits = stopping_.size() > 0 || count_kept(starts) > 0;
    const auto ended = waits ? kept_.end() : least_useful();
    if (ended == kept_.end()) return next;
    end(ended);
    return now + reap_interval;
  }

  steady_time next_look(steady_time now) const {
    auto next = now + (stopping_.size() == 0 ? std::chrono::minutes(1) : reap_interval);
    for (const auto& kept : kept_) {
      if (kept.is_changing()) next = std::min(next, now + watch_interval);
      if (!kept.is_unused()) next = std::min(next, kept.since + settings_.idle_timeout);
    }
    return std::max(next, now + reap_interval);
  }

  void launch(const launch_profile& profile, std::unique_lock<std::mutex>& lock) {
    ++starts_.under_way;
    lock.unlock();
    auto fresh = programs_.start(profile);
    lock.lock();
    --starts_.under_way;
    if (fresh.failure) fail_start(profile, *fresh.failure, true);
    if (fresh.process == nullptr) return;
    ++starts_.total;
    kept_.push_back({profile, std::move(fresh.process), claude_process::state::starting});
  }

  /// A `claude` that dies at its start would be started again without end, were it not sent to a
  /// request that waits for one. `awaited`: one may; a spare is nobody's.
  void fail_start(const launch_profile& profile, const api_error& failure, bool awaited) {
    if (awaited && queue_.refuse(profile, failure)) return;
    settings_.log.warning("no spare: " + failure.message);
    spares_.note_failure();
  }

  const options& settings_;
  cli_programs programs_;

  mutable std::mutex mutex_;  ///< guards all below but the janitor itself
  kept_processes kept_;       ///< the least recently used first
  stopping_processes stopping_;
  fair_queue queue_;
  spare_plan spares_;
  rewind_support support_;
  start_counts starts_;
  std::map<std::string, steady_time> ended_;  ///< by client: what began before does not go on
  bool closing_ = false;

  wake_signal wake_;
  std::thread janitor_;
};

inline lease::~lease() {
  if (process_) pool_->give_back(demand_, std::move(process_));
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
    const auto line = pool_.queue_.in_line();
    granted_ = pool_.try_grant(demand_, line.empty() ? nullptr : line.front());
    const bool goes_on = granted_ && granted_->taken.origin == process_origin::continued;
    if (!goes_on) {
      pool_.spares_.remember(demand_.profile, demand_.client, pool_.settings_.spare_hold);
    }
    if (granted_) return;
    if (pool_.queue_.is_full(demand_.client, pool_.settings_.max_queue)) {
      throw busy("the queue is full");
    }
    waiting_ = std::make_unique<waiting_request>(waiting_request{&demand_});
    pool_.queue_.add(*waiting_);
    pool_.wake_.raise();
  }
  ticket(const ticket&) = delete;
  ticket& operator=(const ticket&) = delete;

  ~ticket() {
    auto unclaimed = std::move(granted_);
    {
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      if (waiting_) pool_.queue_.remove(*waiting_);
      if (waiting_ && waiting_->granted) unclaimed = std::move(waiting_->granted);
    }
    if (!unclaimed || !unclaimed->process) return;
    pool_.give_back(demand_, std::move(unclaimed->process));
  }

  /// Readable when `try_take` may succeed; -1 when it may already.
  int fd() const { return waiting_ ? waiting_->wake.fd() : -1; }

  /// The process, once there is one. Throws a 429 when the wait was too long, and a 503 when
  /// `claude` cannot be started.
  std::optional<lease> try_take() {
    if ((waiting_ && !claim()) || !granted_) return std::nullopt;
    grant mine = *std::exchange(granted_, std::nullopt);
    if (mine.failure) throw api_error(*mine.failure);
    return lease(pool_, demand_, std::move(mine.process), mine.taken);
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
    const auto& queue = pool_.queue_;
    const auto all = queue.max_processes();
    const auto most = std::to_string(all) + " claude processes";
    const auto share = std::to_string(queue.share_of_client(all));
    const std::string who = queue.is_capped(demand_.client)
                                ? "the " + share + " of " + most + " that one key may hold are busy"
                            : queue.busy() >= all ? "all " + most + " are busy"
                                                  : "no claude process is ready yet";
    api_error error(
        error_kind::rate_limited,
        who + " and " + how + "; try again, or start the proxy with a larger --max-processes",
        "processes_busy");
    error.retry_after = std::chrono::seconds(1);
    return error;
  }

  pool& pool_;
  process_demand demand_;
  steady_time deadline_;
  std::optional<grant> granted_;
  std::unique_ptr<waiting_request> waiting_;
};

//================================================================================================
// [21] store - what outlasts the process, and where it lies
// uses: text, errors, json_access, log, options, process | thread-safe
//================================================================================================

/// What is kept under a client's name and an id. The last four are of a shared store alone.
struct stored_record {
  std::string client;
  std::string id;
  json head;                            ///< written anew each time
  std::vector<json> items = {};         ///< appended to
  std::string revision = {};            ///< another one after each write
  std::size_t size = 0;                 ///< how many items there are, where `items` leaves them out
  std::int64_t used_ms = 0;             ///< the last use, since 1970
  std::vector<std::string> names = {};  ///< of its parts, see `state_store::find_part`
};

/// What a write to a shared store depends on: that nobody else has got the lease of the record, and
/// that its revision is still the one that the writer has read. Empty: on nothing.
struct write_condition {
  std::string lease;
  std::string revision;  ///< empty: there is no record
};

/// A count of a shared store's within the present minute.
struct shared_count {
  std::int64_t count = 0;
  bool counted = false;             ///< it was below the limit
  std::chrono::milliseconds reset;  ///< until the next minute
};

/// What a client has used, over all who share the store, and what its requests under way may use.
struct shared_use {
  bool reserved = false;  ///< it all fits
  budget minute;
  budget day;
  budget held;
  std::chrono::milliseconds minute_left;
  std::chrono::milliseconds day_left;
};

/// What answers have used, in an hour or in all.
struct usage_row {
  std::int64_t hour = 0;  ///< since 1970
  std::string key;        ///< `key-1` is the first key's holder; of a sum, what it is the sum of
  std::string model;
  std::string dialect;
  std::string account;  ///< who has paid, see `auth_method`
  std::int64_t answers = 0;
  std::array<std::int64_t, 4> tokens{};  ///< see `token_kinds`
  double usd = 0;
};

constexpr std::array<const char*, 4> token_kinds = {"input", "output", "cache_read", "cache_write"};

constexpr std::int64_t ms_per_hour = 3'600'000;

/// Of the clock on the wall: the other begins anew with the machine.
inline std::int64_t to_ms(std::chrono::system_clock::time_point time) {
  using namespace std::chrono;
  return duration_cast<milliseconds>(time.time_since_epoch()).count();
}

inline std::int64_t now_ms() { return to_ms(std::chrono::system_clock::now()); }

/// Not in the future, whatever the file says: clocks are set back, and files are written to.
inline std::chrono::system_clock::time_point past_time(const json& stored, const char* name) {
  const std::chrono::milliseconds since_1970(
      std::clamp<std::int64_t>(integer_of(stored, name), 0, now_ms()));
  return std::chrono::system_clock::time_point(since_1970);
}

/// Where state lies that outlasts the process. This one keeps nothing: all is in memory alone.
///
/// Of a store that is not shared, its users read all at the start, and write behind what they hold
/// in memory. A shared one is used by several proxies at once: it is asked each time, and forgets
/// by itself what nobody uses. What it cannot do now is a 503, unless said otherwise.
class state_store {
 public:
  state_store() = default;
  state_store(const state_store&) = delete;
  state_store& operator=(const state_store&) = delete;
  virtual ~state_store() = default;

  /// Why it cannot be used, found at the start; empty when it can.
  virtual std::string problem() const { return {}; }

  /// Why what is stored now would be lost: `problem`, or a failure since then, after which it tries
  /// to write. Empty when all is well; nullopt where nothing is kept.
  virtual std::optional<std::string> trouble() { return std::nullopt; }

  /// All records of a kind.
  virtual std::vector<stored_record> read(const char* /*kind*/) { return {}; }

  /// Writes the head, and the items in place of those from position `first` on: all or nothing.
  /// Logs why it cannot; then returns false.
  /// With a condition, throws a 503 instead when it fails or the condition does not hold; a record
  /// that was removed meanwhile stays so.
  virtual bool write(const char* /*kind*/, const stored_record& /*record*/,
                     std::size_t /*first*/ = 0,
                     const std::optional<write_condition>& /*condition*/ = {}) {
    return true;
  }

  /// False when there is none.
  virtual bool remove(const char* /*kind*/, const std::string& /*client*/,
                      const std::string& /*id*/) {
    return false;
  }

  /// False when usage is not kept.
  virtual bool keeps_usage() const { return false; }

  /// Adds the row to its hour's, and forgets hours of more than 90 days ago.
  virtual void add_usage(const usage_row& /*row*/) {}

  /// Sums since an hour, for each `key`, `model`, `dialect` or `day`, in their order.
  virtual std::vector<usage_row> sum_usage(const std::string& /*by*/, std::int64_t /*from*/) {
    return {};
  }

  // ---- of a shared store alone

  virtual bool is_shared() const { return false; }

  /// The record, which counts as use; without its items where its revision is `known`. What is no
  /// record of ours has a head that is no object.
  virtual std::optional<stored_record> fetch(const char* /*kind*/, const std::string& /*client*/,
                                             const std::string& /*id*/,
                                             const std::string& /*known*/ = {}) {
    return std::nullopt;
  }

  /// The client's records without their items, but for one without an id. That is no use.
  virtual std::vector<stored_record> list(const char* /*kind*/, const std::string& /*client*/) {
    return {};
  }

  /// The id of the client's record that has a part of this name; empty: none.
  virtual std::string find_part(const char* /*kind*/, const std::string& /*client*/,
                                const std::string& /*name*/) {
    return {};
  }

  /// Asks for the sole use of a record. Who gets a no asks again within 5 s, or loses its place.
  /// `release` must follow.
  virtual bool try_lease(const char* /*kind*/, const std::string& /*client*/,
                         const std::string& /*id*/, const std::string& /*lease*/) {
    return true;
  }

  /// Never throws: a lease that is not given back ends by itself.
  virtual void release(const char* /*kind*/, const std::string& /*client*/,
                       const std::string& /*id*/, const std::string& /*lease*/) {}

  /// The first value that anybody has given for this name.
  virtual std::string agree(const std::string& /*name*/, const std::string& mine) { return mine; }

  /// Adds one to a count where that is below the limit. Nullopt: it cannot be asked now.
  virtual std::optional<shared_count> count(const std::string& /*name*/, std::int64_t /*limit*/) {
    return std::nullopt;
  }

  /// Reserves what a client's requests may use, if that fits, for at most `longest`; `charge` ends
  /// the reservation. Nullopt, and false: it cannot be asked now.
  virtual std::optional<shared_use> reserve(const std::string& /*client*/,
                                            const std::string& /*id*/, const budget& /*wanted*/,
                                            const options& /*limits*/) {
    return std::nullopt;
  }
  virtual bool charge(const std::string& /*client*/, const std::string& /*id*/,
                      const budget& /*used*/) {
    return false;
  }

  /// Removes what these clients have in a shared store; of another its users know that themselves.
  void forget(const char* kind, const std::set<std::string>& clients) {
    for (const auto& client : clients) {
      try {
        for (const auto& record : list(kind, client)) remove(kind, client, record.id);
        if (is_shared()) remove(kind, client, {});
      } catch (const api_error&) {  // it expires; nobody has the key that it belongs to
        return;
      }
    }
  }

  /// Throws a 503 when it cannot be used: what a request refers to may lie there.
  void require() const {
    if (const auto why = problem(); !why.empty()) throw unavailable(why);
  }

 protected:
  api_error unavailable(const std::string& why) const {
    api_error error(error_kind::unavailable, "the proxy's store cannot be used: " + why);
    error.code = "store_unavailable";
    if (is_shared()) error.retry_after = std::chrono::seconds(2);
    error.retry_is_futile = !is_shared();
    return error;
  }
};

/// The names of files in a directory for sessions.
namespace session_files {
constexpr const char* salt = "salt";
constexpr const char* store = "claude-openai.sqlite";
constexpr std::size_t name_length = 24;
constexpr std::string_view session = ".json";         ///< as older versions stored them
constexpr std::string_view unfinished = ".json.new";  ///< a write of theirs that was cut short

/// Of a name that they gave; other files that end so may be anybody's.
inline bool is_own(std::string_view name, std::string_view ending) {
  return name.size() == name_length + ending.size() && text::ends_with(name, ending);
}

/// The names of all files in a directory for sessions; none where it does not exist. Changes
/// nothing. Throws `std::invalid_argument` for a directory that other users can use, or that
/// holds only files of something else.
inline std::vector<std::string> list(const std::string& directory) {
  std::vector<std::string> names;
  struct stat info {};
  if (::stat(directory.c_str(), &info) != 0) return names;
  auto problem = privacy_problem(info);
  bool used = false;
  if (problem.empty()) {
    for (const auto& file : std::filesystem::directory_iterator(directory)) {
      names.push_back(file.path().filename().string());
      const auto& name = names.back();
      used = used || name == salt || name == store || is_own(name, session) ||
             is_own(name, unfinished);
    }
    if (!used && !names.empty()) problem = "holds other files and no session; name an empty one";
  }
  if (problem.empty()) return names;
  throw std::invalid_argument("--session-dir: " + directory + " " + problem);
}
}  // namespace session_files

/// `--store` names a server of Redis's protocol, not a file. A scheme that nobody knows ends the
/// start: it is no folder's name.
inline bool is_redis(const options& settings) {
  return settings.store.find("://") != std::string::npos;
}

/// The file of `--store`, or the one in the directory for sessions; empty for neither.
inline std::string store_path(const options& settings) {
  if (is_redis(settings)) return {};
  if (settings.session_directory.empty()) return settings.store;
  return settings.session_directory + "/" + session_files::store;
}

#ifdef CLAUDE_OPENAI_SQLITE

/// A file of SQLite's that this process alone uses. What was written survives a kill at any moment;
/// a failure of the whole machine may cost what was written in the seconds before.
class sqlite_store final : public state_store {
 public:
  /// Throws `std::invalid_argument` for a file or directory that other users can write to or read,
  /// `std::system_error` when the file cannot be made. Any other trouble is logged, and `problem`.
  explicit sqlite_store(const options& settings) : path_(store_path(settings)), log_(settings.log) {
    const auto directory = std::filesystem::path(path_).parent_path().string();
    const std::string flag = settings.session_directory.empty() ? "--store" : "--session-dir";
    make_private_directory(directory, flag);
    if (!settings.session_directory.empty()) session_files::list(directory);
    require_private(directory, flag);
    try {
      open();
    } catch (const std::runtime_error& failure) {
      problem_ = failure.what();
      database_.reset();
      log_.error(path_ + " cannot be used: " + problem_ +
                 "; sessions and responses are refused until a restart, other requests are served");
    }
  }

  std::string problem() const override { return problem_; }

  std::optional<std::string> trouble() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!problem_.empty()) return problem_;
    int moved = 0;
    ::sqlite3_file_control(database_.get(), nullptr, SQLITE_FCNTL_HAS_MOVED, &moved);
    if (moved != 0) return "its file was moved or deleted; restart the proxy";
    if (failure_.empty()) return failure_;
    try {  // as much as a turn may need: a full disk often has room for a page
      run("INSERT OR REPLACE INTO records VALUES ('trial', '', '', hex(zeroblob(50000)))");
      run("DELETE FROM records WHERE kind = 'trial'");
      failure_.clear();
      log_.info(path_ + " can be written to again");
    } catch (const std::runtime_error& failure) {
      failure_ = failure.what();
    }
    return failure_;
  }

  std::vector<stored_record> read(const char* kind) override {
    std::vector<stored_record> records;
    const bool whole = attempt(kind, "read", [&] {
      run("SELECT r.client, r.id, r.head, i.body FROM records r LEFT JOIN items i "
          "ON i.kind = r.kind AND i.client = r.client AND i.id = r.id "
          "WHERE r.kind = ? ORDER BY r.client, r.id, i.position",
          {std::string(kind)}, [&](sqlite3_stmt* row) {
            const auto client = text_of(row, 0);
            const auto id = text_of(row, 1);
            if (records.empty() || records.back().client != client || records.back().id != id) {
              records.push_back({client, id, try_parse_json(text_of(row, 2), max_line_depth)});
            }
            if (::sqlite3_column_type(row, 3) == SQLITE_NULL) return;
            records.back().items.push_back(try_parse_json(text_of(row, 3), max_line_depth));
          });
    });
    if (!whole && problem_.empty()) problem_ = "it cannot be read";
    return records;
  }

  bool write(const char* kind, const stored_record& record, std::size_t first,
             const std::optional<write_condition>& /*condition*/) override {
    return attempt(kind, "stored", [&] {
      const std::vector<value> key = {std::string(kind), record.client, record.id};
      const auto with = [&](std::initializer_list<value> more) {
        auto all = key;
        all.insert(all.end(), more);
        return all;
      };
      run("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", with({dump(record.head)}));
      auto position = static_cast<std::int64_t>(first);
      run("DELETE FROM items WHERE kind = ? AND client = ? AND id = ? AND position >= ?",
          with({position}));
      for (const auto& item : record.items) {
        run("INSERT INTO items VALUES (?, ?, ?, ?, ?)", with({position++, dump(item)}));
      }
    });
  }

  bool keeps_usage() const override { return true; }

  void add_usage(const usage_row& row) override {
    attempt("usage", "stored", [&] {
      if (std::exchange(usage_hour_, row.hour) != row.hour) {
        run("DELETE FROM usage WHERE hour < ?", {row.hour - 90 * 24});
      }
      run("INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
          "ON CONFLICT (hour, key, model, dialect, account) DO UPDATE SET"
          " answers = answers + excluded.answers,"
          " input = input + excluded.input, output = output + excluded.output,"
          " cache_read = cache_read + excluded.cache_read,"
          " cache_write = cache_write + excluded.cache_write, usd = usd + excluded.usd",
          {row.hour, row.key, row.model, row.dialect, row.account, row.answers, row.tokens[0],
           row.tokens[1], row.tokens[2], row.tokens[3], row.usd});
    });
  }

  std::vector<usage_row> sum_usage(const std::string& by, std::int64_t from) override {
    const auto of = by == "day" ? "date(hour * 3600, 'unixepoch')" : by;
    std::vector<usage_row> sums;
    const bool whole = attempt("usage", "read", [&] {
      run("SELECT " + of +
              ", sum(answers), sum(input), sum(output), sum(cache_read),"
              " sum(cache_write), sum(usd) FROM usage WHERE hour >= ? GROUP BY 1 ORDER BY 1",
          {from}, [&](sqlite3_stmt* row) {
            const auto at = [&](int column) { return ::sqlite3_column_int64(row, column); };
            sums.push_back({0,
                            text_of(row, 0),
                            "",
                            "",
                            "",
                            at(1),
                            {at(2), at(3), at(4), at(5)},
                            ::sqlite3_column_double(row, 6)});
          });
    });
    if (!whole) throw unavailable("it cannot be read");
    return sums;
  }

  bool remove(const char* kind, const std::string& client, const std::string& id) override {
    bool found = false;
    attempt(kind, "removed", [&] {
      for (const auto* table : {"items", "records"}) {
        run("DELETE FROM " + std::string(table) + " WHERE kind = ? AND client = ? AND id = ?",
            {std::string(kind), client, id});
      }
      found = ::sqlite3_changes(database_.get()) > 0;
    });
    return found;
  }

 private:
  using value = std::variant<std::int64_t, double, std::string>;

  struct closer {
    void operator()(sqlite3* database) const { ::sqlite3_close_v2(database); }
    void operator()(sqlite3_stmt* statement) const { ::sqlite3_finalize(statement); }
  };

  /// The steps from each version of the schema to the next; `PRAGMA user_version` counts those that
  /// a file has taken. A step that was released is never changed.
  static const std::vector<const char*>& schema_steps() {
    static const std::vector<const char*> steps = {
        "CREATE TABLE records (kind TEXT, client TEXT, id TEXT, head TEXT NOT NULL,"
        " PRIMARY KEY (kind, client, id)) WITHOUT ROWID;"
        "CREATE TABLE items (kind TEXT, client TEXT, id TEXT, position INTEGER, body TEXT NOT NULL,"
        " PRIMARY KEY (kind, client, id, position)) WITHOUT ROWID;",
        "CREATE TABLE usage (hour INTEGER, key TEXT, model TEXT, dialect TEXT, answers INTEGER,"
        " input INTEGER, output INTEGER, cache_read INTEGER, cache_write INTEGER, usd REAL,"
        " PRIMARY KEY (hour, key, model, dialect)) WITHOUT ROWID;",
        "ALTER TABLE usage RENAME TO old_usage;"
        "CREATE TABLE usage (hour INTEGER, key TEXT, model TEXT, dialect TEXT, account TEXT,"
        " answers INTEGER, input INTEGER, output INTEGER, cache_read INTEGER, cache_write INTEGER,"
        " usd REAL, PRIMARY KEY (hour, key, model, dialect, account)) WITHOUT ROWID;"
        "INSERT INTO usage SELECT hour, key, model, dialect, 'unknown', answers, input, output,"
        " cache_read, cache_write, usd FROM old_usage;"
        "DROP TABLE old_usage;",
    };
    return steps;
  }

  /// SQLite gives its other files the mode of this one.
  void require_private(const std::string& directory, const std::string& flag) const {
    struct stat info {};
    if (::stat(directory.c_str(), &info) == 0 && (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
      throw std::invalid_argument(flag + ": other users may write to " + directory +
                                  "; choose a directory of your own");
    }
    const unique_fd file(
        ::open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
    if (!file || ::fstat(file.get(), &info) != 0) {
      throw std::system_error(last_system_error(), flag + ": " + path_ + " cannot be used");
    }
    const bool is_own = S_ISREG(info.st_mode) && info.st_uid == ::geteuid();
    if (is_own && (info.st_mode & 077U) == 0) return;
    throw std::invalid_argument(flag + ": " + path_ +
                                (is_own ? " is open to other users; `chmod 600` makes it private"
                                        : " is no regular file of this user"));
  }

  void open() {
    sqlite3* opened = nullptr;
    const int result = ::sqlite3_open_v2(path_.c_str(), &opened, SQLITE_OPEN_READWRITE, nullptr);
    database_.reset(opened);
    check(result);
    ::sqlite3_busy_timeout(opened, 2'000);  // a proxy that is just ending still has it
    for (const auto* setting : {"locking_mode = EXCLUSIVE", "journal_mode = WAL",
                                "synchronous = NORMAL", "secure_delete = ON"}) {
      run("PRAGMA " + std::string(setting));
    }
    run("PRAGMA quick_check(1)", {}, [](sqlite3_stmt* row) {
      if (text_of(row, 0) != "ok") throw std::runtime_error("it is damaged: " + text_of(row, 0));
    });
    const auto& steps = schema_steps();
    const auto version = static_cast<std::size_t>(number("PRAGMA user_version"));
    if (version > steps.size()) throw std::runtime_error("a newer version of the proxy wrote it");
    if (version == 0 && number("SELECT count(*) FROM sqlite_master") > 0) {
      throw std::runtime_error("it belongs to another program");
    }
    for (auto next = version; next < steps.size(); ++next) {
      run_script("BEGIN;" + std::string(steps[next]) +
                 "PRAGMA user_version = " + std::to_string(next + 1) + "; COMMIT");
    }
  }

  void check(int result) const {
    if (result == SQLITE_OK || result == SQLITE_ROW || result == SQLITE_DONE) return;
    if (result == SQLITE_BUSY) throw std::runtime_error("another process uses it");
    throw std::runtime_error(::sqlite3_errmsg(database_.get()));
  }

  void run_script(const std::string& statements) {
    check(::sqlite3_exec(database_.get(), statements.c_str(), nullptr, nullptr, nullptr));
  }

  /// Runs one statement, and calls `take` for each row that it yields.
  void run(
      const std::string& statement, const std::vector<value>& values = {},
      const std::function<void(sqlite3_stmt*)>& take = [](sqlite3_stmt*) {}) {
    sqlite3_stmt* compiled = nullptr;
    check(::sqlite3_prepare_v2(database_.get(), statement.c_str(), -1, &compiled, nullptr));
    const std::unique_ptr<sqlite3_stmt, closer> owner(compiled);
    int at = 0;
    for (const auto& one : values) {
      ++at;
      check(std::visit(
          overloaded{[&](std::int64_t given) { return ::sqlite3_bind_int64(compiled, at, given); },
                     [&](double given) { return ::sqlite3_bind_double(compiled, at, given); },
                     [&](const std::string& given) {
                       return ::sqlite3_bind_text64(compiled, at, given.data(), given.size(),
                                                    nullptr, SQLITE_UTF8);
                     }},
          one));
    }
    for (;;) {
      const int result = ::sqlite3_step(compiled);
      check(result);
      if (result != SQLITE_ROW) return;
      take(compiled);
    }
  }

  std::int64_t number(const std::string& statement) {
    std::int64_t found = 0;
    run(statement, {}, [&](sqlite3_stmt* row) { found = ::sqlite3_column_int64(row, 0); });
    return found;
  }

  static std::string text_of(sqlite3_stmt* row, int column) {
    const auto* bytes = static_cast<const char*>(::sqlite3_column_blob(row, column));
    const auto size = static_cast<std::size_t>(::sqlite3_column_bytes(row, column));
    return bytes == nullptr ? std::string() : std::string(bytes, size);
  }

  /// Does the work in one transaction. Logs what goes wrong: `session not stored: …`.
  template <class Work>
  bool attempt(const char* kind, const char* done, Work work) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!problem_.empty()) return false;
    try {
      run_script("BEGIN");
      work();
      run_script("COMMIT");
      return true;
    } catch (const std::exception& failure) {
      failure_ = failure.what();
      log_.error(std::string(kind) + " not " + done + ": " + failure.what());
      ::sqlite3_exec(database_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
      return false;
    }
  }

  const std::string path_;
  logger log_;
  std::string problem_;
  std::string failure_;  ///< of a transaction, until `trouble` finds that it is over
  std::mutex mutex_;
  std::int64_t usage_hour_ = 0;  ///< of the latest row
  std::unique_ptr<sqlite3, closer> database_;
};

#endif

#ifdef CLAUDE_OPENAI_REDIS

/// Where a server of Redis's protocol listens.
struct redis_address {
  std::string host;  ///< of a unix socket its path
  std::string port;  ///< empty: it is a unix socket
  std::string user;
  std::string password;
  std::string database = "0";
  bool tls = false;
  std::string issuers_file = {};       ///< of certificates that TLS accepts; empty: the system's
  std::string issuers_directory = {};  ///< likewise

  /// Without what is secret.
  std::string name() const {
    if (port.empty()) return "unix://" + host + "?db=" + database;
    return (tls ? "rediss://" : "redis://") + host + ":" + port + "/" + database;
  }
};

/// Takes apart `redis://[user:password@]host[:port][/db]`, `rediss://` likewise for TLS, and
/// `unix://[user:password@]path[?db=N]`.
/// Throws `std::invalid_argument`, which tells nothing of user and password.
inline redis_address parse_redis_address(const std::string& url) {
  static const std::regex server(
      R"(rediss?://(?:([^:@]*):([^@]*)@)?(\[[^\]]+\]|[^:/@]+)(?::(\d{1,5}))?(?:/(\d{0,5}))?)");
  static const std::regex socket(R"(unix://(?:([^:@/]*):([^@/]*)@)?(/[^?]*)()(?:\?db=(\d{1,5}))?)");
#ifndef CLAUDE_OPENAI_REDIS_TLS
  if (text::starts_with(url, "rediss://")) {
    throw std::invalid_argument(
        "--store: this build has no TLS to Redis, which needs hiredis 1.0 or newer with "
        "hiredis_ssl, and OpenSSL");
  }
#endif
  std::smatch parts;
  if (!std::regex_match(url, parts, server) && !std::regex_match(url, parts, socket)) {
    throw std::invalid_argument(
        "--store: this is no address of Redis; write redis://[user:password@]host:port/db, "
        "rediss:// for TLS, or unix://[user:password@]/path?db=N, with %XX for :, / and @ in a "
        "password");
  }
  const auto part = [&](std::size_t at, const char* usual = "") {
    return parts[at].length() == 0 ? std::string(usual) : parts[at].str();
  };
  redis_address found{part(3), part(4, text::starts_with(url, "unix") ? "" : "6379"),
                      text::decode_percent(part(1)), text::decode_percent(part(2)), part(5, "0")};
  if (found.host.front() == '[') found.host = found.host.substr(1, found.host.size() - 2);
  found.tls = text::starts_with(url, "rediss://");
  return found;
}

/// That of the options. Throws as above.
inline redis_address redis_address_of(const options& settings) {
  auto found = parse_redis_address(settings.store);
  found.issuers_file = value_or(settings.environment, "SSL_CERT_FILE");
  found.issuers_directory = value_or(settings.environment, "SSL_CERT_DIR");
  return found;
}

struct redis_closer {
  void operator()(redisContext* context) const { ::redisFree(context); }
  void operator()(redisReply* reply) const { ::freeReplyObject(reply); }
};
using redis_context = std::unique_ptr<redisContext, redis_closer>;
using redis_reply = std::unique_ptr<redisReply, redis_closer>;

inline std::string text_of(const redisReply* reply) {
  if (reply == nullptr || reply->str == nullptr) return {};
  return {reply->str, static_cast<std::size_t>(reply->len)};
}

#ifdef CLAUDE_OPENAI_REDIS_TLS

using redis_tls = std::unique_ptr<SSL, void (*)(SSL*)>;

/// The client's end of TLS, which accepts only a valid certificate of the address's host. Throws
/// `std::runtime_error`.
inline redis_tls make_redis_tls(const redis_address& where) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(::SSL_CTX_new(::TLS_client_method()),
                                                             ::SSL_CTX_free);
  if (!context) throw std::bad_alloc();
  auto* raw = context.get();
  ::SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
  ::SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
  const auto& file = where.issuers_file;
  const auto& directory = where.issuers_directory;
  if (file.empty()) {
    ::SSL_CTX_set_default_verify_file(raw);
  } else if (::SSL_CTX_load_verify_locations(raw, file.c_str(), nullptr) != 1) {
    throw std::runtime_error("SSL_CERT_FILE: no certificate in " + file);
  }
  if (directory.empty()) {
    ::SSL_CTX_set_default_verify_dir(raw);
  } else {
    ::SSL_CTX_load_verify_locations(raw, nullptr, directory.c_str());
  }
  redis_tls made(::SSL_new(raw), ::SSL_free);
  if (!made) throw std::bad_alloc();
  auto host = where.host;
  if (::X509_VERIFY_PARAM_set1_ip_asc(::SSL_get0_param(made.get()), host.c_str()) == 1) return made;
  // The macro `SSL_set_tlsext_host_name` has a cast of C's.
  const int name = TLSEXT_NAMETYPE_host_name;
  if (::SSL_set1_host(made.get(), host.c_str()) != 1 ||
      ::SSL_ctrl(made.get(), SSL_CTRL_SET_TLSEXT_HOSTNAME, name, host.data()) != 1) {
    throw std::runtime_error("TLS cannot be set up for this host");
  }
  return made;
}

/// Why the last call failed: by the certificate, by TLS, or else `otherwise`.
inline std::string redis_tls_failure(const SSL* session, const std::string& otherwise) {
  const auto verdict = ::SSL_get_verify_result(session);
  if (verdict != X509_V_OK) {
    return std::string("its certificate is refused: ") + ::X509_verify_cert_error_string(verdict);
  }
  const auto* reason = ::ERR_reason_error_string(::ERR_peek_last_error());
  return reason == nullptr ? otherwise : "no TLS: " + std::string(reason);
}

/// Shakes hands. Does not block meanwhile: else a limit would hold for each byte, not for all.
/// Throws `std::runtime_error`.
inline void start_redis_tls(redisContext& connection, const redis_address& where,
                            steady_time until) {
  ::ERR_clear_error();
  auto session = make_redis_tls(where);
  auto* raw = session.get();
  set_nonblocking(connection.fd);
  connection.flags &= ~REDIS_BLOCK;
  if (::redisInitiateSSL(&connection, raw) != REDIS_OK) {
    throw std::runtime_error(redis_tls_failure(raw, connection.errstr));
  }
  static_cast<void>(session.release());  // it belongs to the connection now
  for (;;) {
    const int done = ::SSL_do_handshake(raw);
    if (done == 1) break;
    const int reason = ::SSL_get_error(raw, done);
    if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE) {
      throw std::runtime_error(redis_tls_failure(raw, "no TLS: it closed the connection"));
    }
    const short wanted = reason == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
    pollfd entry{connection.fd, wanted, 0};
    if (::poll(&entry, 1, poll_timeout(until)) == 0) {
      throw std::runtime_error("no TLS: it does not answer");
    }
  }
  ::fcntl(connection.fd, F_SETFL, ::fcntl(connection.fd, F_GETFL) & ~O_NONBLOCK);
  connection.flags |= REDIS_BLOCK;
}

#endif

/// Redis cannot be reached now, or takes nothing.
struct redis_outage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A connection that threads share, and that comes back by itself. No step takes over a second.
class redis_connection {
 public:
  static constexpr std::chrono::milliseconds max_step{1'000};

  /// When a command waits for Redis to come back: never, when it was lost under way, or always.
  enum class patience { none, lost, gone };

  /// Throws `std::runtime_error` when no Redis is there or it wants another password. A thread of
  /// its own calls `tick` every few seconds.
  redis_connection(redis_address address, const logger& log, std::function<void()> tick)
      : address_(std::move(address)), log_(log), tick_(std::move(tick)) {
    try {
      context_ = connect(address_);
    } catch (const std::runtime_error& failure) {
      throw std::runtime_error("--store: " + address_.name() +
                               " cannot be used: " + failure.what());
    }
    keeper_ = std::thread([this] { keep(); });
  }
  redis_connection(const redis_connection&) = delete;
  redis_connection& operator=(const redis_connection&) = delete;
  ~redis_connection() {
    {
      const std::lock_guard<std::timed_mutex> lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    keeper_.join();
  }

  /// Why it is gone; empty: it is not.
  std::string outage() const {
    const std::lock_guard<std::mutex> lock(outage_mutex_);
    return outage_;
  }

  /// The reply to a command. Throws `redis_outage` while Redis is gone, `std::runtime_error` for a
  /// refusal.
  redis_reply run(const std::vector<std::string>& words, patience wait) {
    const auto until = std::chrono::steady_clock::now() + max_step;
    // By the wall's clock: the thread sanitizer knows no other wait for a mutex.
    std::unique_lock<std::timed_mutex> lock(mutex_, std::chrono::system_clock::now() + max_step);
    if (!lock) throw redis_outage("Redis is too slow");
    for (;;) {
      const auto known = [&] { return context_ || (gone_ && wait != patience::gone); };
      if (wait != patience::none) changed_.wait_until(lock, until, known);
      if (!context_) throw redis_outage("Redis is gone");
      auto reply = call(context_.get(), words, until);
      if (reply && !is_outage(*reply)) {
        if (reply->type == REDIS_REPLY_ERROR) throw std::runtime_error(text_of(reply.get()));
        return reply;
      }
      context_.reset();
      changed_.notify_all();
      if (wait == patience::lost) wait = patience::gone;
    }
  }

  /// Connects, logs in, and tries to write. Throws `std::runtime_error`.
  static redis_context connect(const redis_address& where) {
    auto until = std::chrono::steady_clock::now() + max_step;
    timeval limit{};
    limit.tv_usec = 500'000;
    redis_context first(
        where.port.empty()
            ? ::redisConnectUnixWithTimeout(where.host.c_str(), limit)
            : ::redisConnectWithTimeout(where.host.c_str(), std::stoi(where.port), limit));
    if (!first) throw std::bad_alloc();
    if (first->err != 0) throw std::runtime_error(first->errstr);
    // No child inherits this one.
    redis_context made(::redisConnectFd(::fcntl(first->fd, F_DUPFD_CLOEXEC, 0)));
    if (!made) throw std::bad_alloc();
#ifdef CLAUDE_OPENAI_REDIS_TLS
    if (where.tls) {
      start_redis_tls(*made, where, until);
      until = std::chrono::steady_clock::now() + max_step;
    }
#endif
    std::vector<std::string> login{"AUTH"};
    if (!where.user.empty()) login.push_back(where.user);
    login.push_back(where.password);
    std::vector<std::vector<std::string>> steps;
    if (!where.password.empty()) steps.push_back(login);
    steps.push_back({"SELECT", where.database});
    // Two keys: in a cluster no script may have them.
    steps.push_back({"EVAL",
                     "redis.call('TIME') redis.call('SET', KEYS[1], '', 'PX', 1000) "
                     "return redis.call('TYPE', KEYS[2])",
                     "2", "claude-openai:v1:trial", "claude-openai:v1:trial:2"});
    for (const auto& step : steps) {
      const auto reply = call(made.get(), step, until);
      if (!reply) throw std::runtime_error(why_lost(*made, where.tls && &step == &steps.front()));
      if (reply->type == REDIS_REPLY_ERROR) throw std::runtime_error(refusal_of(*reply));
    }
    return made;
  }

 private:
  static constexpr std::chrono::milliseconds max_pause{2'000};  ///< between two attempts
  static constexpr std::chrono::milliseconds tick_every{3'000};

  static std::string refusal_of(const redisReply& reply) {
    const auto error = text_of(&reply);
    for (const auto* code : {"CROSSSLOT", "MOVED", "CLUSTERDOWN"}) {
      if (text::starts_with(error, code)) return "it is of a cluster, not a Redis of its own";
    }
    return error;
  }

  /// Right after a call that returned null; `greeted`: only TLS has gone well before.
  static std::string why_lost(const redisContext& context, bool greeted) {
    if (context.err == REDIS_ERR_IO && errno == EAGAIN) return "it does not answer";
    std::string why = context.errstr;
#ifdef CLAUDE_OPENAI_REDIS_TLS
    const auto* reason = ::ERR_reason_error_string(::ERR_peek_last_error());
    if (reason != nullptr) why = reason;
#endif
    if (greeted) why += "; if it wants certificates of clients, set its tls-auth-clients to no";
    return why;
  }

  /// Null, with `errstr` set, when the connection is lost.
  static redis_reply call(redisContext* context, const std::vector<std::string>& words,
                          steady_time until) {
    const auto left = std::max(until - std::chrono::steady_clock::now(), steady_time::duration(1));
    const auto us = std::chrono::ceil<std::chrono::microseconds>(left).count();
    timeval limit{};
    limit.tv_sec = static_cast<decltype(limit.tv_sec)>(us / 1'000'000);
    limit.tv_usec = static_cast<decltype(limit.tv_usec)>(us % 1'000'000);
    ::redisSetTimeout(context, limit);
    std::vector<const char*> bytes;
    std::vector<std::size_t> sizes;
    for (const auto& word : words) {
      bytes.push_back(word.data());
      sizes.push_back(word.size());
    }
#ifdef CLAUDE_OPENAI_REDIS_TLS
    ::ERR_clear_error();
#endif
    errno = 0;  // hiredis tries again for ever where TLS has failed and an older EINTR is left
    return redis_reply(static_cast<redisReply*>(
        ::redisCommandArgv(context, static_cast<int>(words.size()), bytes.data(), sizes.data())));
  }

  /// The command is right, but Redis takes none of this kind now. A script's error may begin with
  /// where it has happened.
  static bool is_outage(const redisReply& reply) {
    if (reply.type != REDIS_REPLY_ERROR) return false;
    const auto error = text_of(&reply);
    const auto names = [&](const char* code) { return error.find(code) != error.npos; };
    constexpr std::array<const char*, 9> codes = {"LOADING ", "READONLY ",   "MASTERDOWN ",
                                                  "OOM ",     "MISCONF ",    "NOAUTH ",
                                                  "NOPERM ",  "NOREPLICAS ", "BUSY "};
    return std::any_of(codes.begin(), codes.end(), names);
  }

  /// Notes that Redis has gone, or is back, and logs that once.
  void note(const std::string& why) {
    gone_ = !context_;
    const std::lock_guard<std::mutex> lock(outage_mutex_);
    const bool known = outage_.empty() == why.empty();
    outage_ = why;
    if (known) return;
    if (why.empty()) return log_.info("the store at " + address_.name() + " is back");
    log_.error("the store at " + address_.name() + " is gone: " + why +
               "; what needs it is refused until it is back, other requests are served");
  }

  /// The thread: connects anew what is lost, with pauses that get longer, and ticks.
  void keep() {
    std::chrono::milliseconds pause{};
    auto due = std::chrono::steady_clock::now() + tick_every;
    std::unique_lock<std::timed_mutex> lock(mutex_);
    while (!closing_) {
      if (context_) {
        pause = std::chrono::milliseconds(50);
        changed_.wait_until(lock, due, [this] { return closing_ || !context_; });
        if (!context_ || closing_ || std::chrono::steady_clock::now() < due) continue;
        due = std::chrono::steady_clock::now() + tick_every;
        lock.unlock();
        tick_();
        lock.lock();
        continue;
      }
      lock.unlock();
      redis_context fresh;
      std::string why;
      try {
        fresh = connect(address_);
      } catch (const std::exception& failure) {
        why = failure.what();
      }
      lock.lock();
      context_ = std::move(fresh);
      note(why);
      changed_.notify_all();
      if (context_) continue;
      changed_.wait_for(lock, pause, [this] { return closing_; });
      pause = std::min(2 * pause, max_pause);
    }
  }

  const redis_address address_;
  const logger log_;
  const std::function<void()> tick_;
  std::timed_mutex mutex_;
  std::condition_variable_any changed_;
  redis_context context_;  ///< null: lost, and the keeper makes another
  bool gone_ = false;      ///< an attempt to get it back has failed
  bool closing_ = false;
  mutable std::mutex outage_mutex_;
  std::string outage_;
  std::thread keeper_;
};

/// What runs in Redis, each all or nothing. A key of ours that holds something of another type is
/// not ours: it is ignored, and replaced when it is written to.
namespace redis_scripts {
/// Before all others.
constexpr const char* common = R"lua(
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function own(key, type)
  local found = redis.call('TYPE', key).ok
  if found ~= type and found ~= 'none' then redis.call('DEL', key) end
  return key
end
)lua";

/// A record is a list: its revision, its head, its items. The index has the times of use.
/// KEYS: record, index. ARGV: known revision, time to live, id.
constexpr const char* fetch = R"lua(
local type = redis.call('TYPE', KEYS[1]).ok
if type == 'none' then return false end
if type ~= 'list' then return {''} end
if ARGV[3] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('ZADD', own(KEYS[2], 'zset'), now, ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
local begin = redis.call('LRANGE', KEYS[1], 0, 1)
if begin[1] == ARGV[1] then return begin end
return redis.call('LRANGE', KEYS[1], 0, -1)
)lua";

/// KEYS: record, index, lease. ARGV: new revision, condition's lease and revision, head, first
/// position, time to live, id, most records, prefix of records, how many names, when it is too late
/// for a condition, the names' keys, items. Returns the time when it is too late.
constexpr const char* write = R"lua(
local record, index = own(KEYS[1], 'list'), own(KEYS[2], 'zset')
local known = redis.call('LINDEX', record, 0) or ''
if known == ARGV[1] then return 'done' end
if ARGV[2] ~= '' then
  if now > tonumber(ARGV[11]) then return now end
  local holder = redis.call('GET', own(KEYS[3], 'string'))
  if holder and holder ~= ARGV[2] then return 'lost' end
  if known ~= ARGV[3] then return known == '' and 'gone' or 'lost' end
end
if known == '' or ARGV[5] == '0' then
  redis.call('DEL', record)
  redis.call('RPUSH', record, ARGV[1], ARGV[4])
else
  redis.call('LSET', record, 0, ARGV[1])
  redis.call('LSET', record, 1, ARGV[4])
  redis.call('LTRIM', record, 0, ARGV[5] + 1)
end
local names = tonumber(ARGV[10])
for at = 12 + names, #ARGV do redis.call('RPUSH', record, ARGV[at]) end
for at = 12, 11 + names do redis.call('SET', ARGV[at], ARGV[7], 'PX', ARGV[6]) end
if ARGV[7] == '' then return 'done' end
redis.call('PEXPIRE', record, ARGV[6])
redis.call('ZADD', index, now, ARGV[7])
redis.call('PEXPIRE', index, ARGV[6])
redis.call('ZREMRANGEBYSCORE', index, '-inf', now - ARGV[6])
while redis.call('ZCARD', index) > tonumber(ARGV[8]) do
  redis.call('DEL', ARGV[9] .. redis.call('ZPOPMIN', index)[1])
end
return 'done'
)lua";

/// KEYS: index. ARGV: prefix of records, time to live. Id, time of use, size, revision, head.
constexpr const char* list = R"lua(
own(KEYS[1], 'zset')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
local found, rows = {}, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for at = 1, #rows, 2 do
  local key = ARGV[1] .. rows[at]
  if redis.call('TYPE', key).ok == 'list' then
    local begin = redis.call('LRANGE', key, 0, 1)
    local size = redis.call('LLEN', key) - 2
    found[#found + 1] = {rows[at], rows[at + 1], tostring(size), begin[1], begin[2] or ''}
  end
end
return found
)lua";

/// KEYS: record, index. ARGV: id.
constexpr const char* remove = R"lua(
redis.call('ZREM', own(KEYS[2], 'zset'), ARGV[1])
return redis.call('DEL', own(KEYS[1], 'list'))
)lua";

/// KEYS: lease, queue (when each came), asked (when each asked last). ARGV: who asks, time to live,
/// longest pause between two questions.
constexpr const char* lease = R"lua(
local lease, queue, asked = own(KEYS[1], 'string'), own(KEYS[2], 'zset'), own(KEYS[3], 'zset')
local holder = redis.call('GET', lease)
if holder ~= ARGV[1] then
  redis.call('ZADD', queue, 'NX', time[1] * 1000000 + time[2], ARGV[1])
  redis.call('ZADD', asked, now, ARGV[1])
  for _, left in ipairs(redis.call('ZRANGEBYSCORE', asked, '-inf', now - ARGV[3])) do
    redis.call('ZREM', queue, left)
    redis.call('ZREM', asked, left)
  end
  if holder or redis.call('ZRANGE', queue, 0, 0)[1] ~= ARGV[1] then
    redis.call('PEXPIRE', queue, ARGV[2])
    redis.call('PEXPIRE', asked, ARGV[2])
    return 0
  end
end
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
redis.call('ZREM', queue, ARGV[1])
redis.call('ZREM', asked, ARGV[1])
return now
)lua";

/// KEYS and ARGV[1] as above.
constexpr const char* release = R"lua(
redis.call('ZREM', own(KEYS[2], 'zset'), ARGV[1])
redis.call('ZREM', own(KEYS[3], 'zset'), ARGV[1])
if redis.call('GET', own(KEYS[1], 'string')) == ARGV[1] then redis.call('DEL', KEYS[1]) end
)lua";

/// KEYS: leases. ARGV: time to live, who has each.
constexpr const char* renew = R"lua(
for at, lease in ipairs(KEYS) do
  if redis.call('GET', own(lease, 'string')) == ARGV[at + 1] then
    redis.call('PEXPIRE', lease, ARGV[1])
  end
end
return now
)lua";

/// KEYS: count, a mark that it was counted. ARGV: limit. How many, whether this one was counted,
/// milliseconds of the minute.
constexpr const char* count = R"lua(
local key = own(KEYS[1] .. ':' .. math.floor(now / 60000), 'string')
local before, left = tonumber(redis.call('GET', key)) or 0, 60000 - now % 60000
if redis.call('EXISTS', KEYS[2]) == 1 then return {before, 1, left} end
if before >= tonumber(ARGV[1]) then return {before, 0, left} end
redis.call('SET', KEYS[2], '', 'PX', 60000)
redis.call('SET', key, before + 1, 'PX', left)
return {before + 1, 1, left}
)lua";

/// KEYS: use, reservations. ARGV: id of the reservation, its end in how long, what is wanted, the
/// limits of a minute and of a day: requests, tokens, USD each. Returns whether it fits, what was
/// used in the minute and in the day and is reserved, milliseconds left of both.
/// The rule is that of `limiter::refuse_spent`.
constexpr const char* reserve = R"lua(
local held, others = {0, 0, 0}, redis.call('HGETALL', own(KEYS[2], 'hash'))
local again = redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1
for at = 1, #others, 2 do
  local ends, requests, tokens, usd = string.match(others[at + 1], '^(%S+) (%S+) (%S+) (%S+)$')
  if not ends or (tonumber(ends) or 0) < now then
    redis.call('HDEL', KEYS[2], others[at])
  else
    held[1] = held[1] + tonumber(requests)
    held[2] = held[2] + tonumber(tokens)
    held[3] = held[3] + tonumber(usd)
  end
end
local wanted, fits, result = {tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])}, true, {0}
local least, fields = {wanted[1], 1, 1e-9}, {'requests', 'tokens', 'usd'}
for span, length in ipairs({60000, 86400000}) do
  local key = own(KEYS[1] .. ':' .. length .. ':' .. math.floor(now / length), 'hash')
  for n, field in ipairs(fields) do
    local used = tonumber(redis.call('HGET', key, field)) or 0
    local limit = tonumber(ARGV[2 + 3 * span + n])
    local all = used + least[n]
    if n > 1 and held[1] > 0 then all = all + held[n] + wanted[n] end
    if wanted[n] > 0 and limit > 0 and all > limit then fits = false end
    result[#result + 1] = string.format('%.17g', used)
  end
end
fits = fits or again
for n = 1, 3 do result[#result + 1] = string.format('%.17g', held[n]) end
for _, length in ipairs({60000, 86400000}) do
  if fits and not again then
    local key = KEYS[1] .. ':' .. length .. ':' .. math.floor(now / length)
    redis.call('HINCRBY', key, 'requests', ARGV[3])
    redis.call('PEXPIRE', key, length)
  end
  result[#result + 1] = tostring(length - now % length)
end
if fits then
  result[1] = 1
  local ends = string.format('%.0f', now + ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], table.concat({ends, ARGV[3], ARGV[4], ARGV[5]}, ' '))
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
result[1] = tostring(result[1])
return result
)lua";

/// KEYS: use, reservations, a mark that it was charged. ARGV: id of the reservation, tokens, USD.
constexpr const char* charge = R"lua(
if not redis.call('SET', KEYS[3], '', 'NX', 'PX', 3600000) then return end
redis.call('HDEL', own(KEYS[2], 'hash'), ARGV[1])
for _, length in ipairs({60000, 86400000}) do
  local key = own(KEYS[1] .. ':' .. length .. ':' .. math.floor(now / length), 'hash')
  redis.call('HINCRBY', key, 'tokens', ARGV[2])
  local usd = (tonumber(redis.call('HGET', key, 'usd')) or 0) + ARGV[3]
  redis.call('HSET', key, 'usd', string.format('%.17g', math.max(0, usd)))
  redis.call('PEXPIRE', key, length)
end
)lua";

/// KEYS: the hour's use, a mark that it was added. ARGV: when the use is forgotten, the fields and
/// what is added to each.
constexpr const char* add_usage = R"lua(
if not redis.call('SET', KEYS[2], '', 'NX', 'PX', 3600000) then return end
own(KEYS[1], 'hash')
for at = 2, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIREAT', KEYS[1], ARGV[1])
)lua";

/// KEYS: hours. Field, amount and so on for each.
constexpr const char* read_usage = R"lua(
local hours = {}
for at, key in ipairs(KEYS) do hours[at] = redis.call('HGETALL', own(key, 'hash')) end
return hours
)lua";
}  // namespace redis_scripts

/// State that several proxies share, in Redis or Valkey.
class redis_store final : public state_store {
 public:
  /// Throws as `redis_address_of` and `redis_connection` do.
  explicit redis_store(const options& settings)
      : ttl_(std::to_string(settings.session_ttl.count())),
        log_(settings.log),
        redis_(redis_address_of(settings), settings.log, [this] { tick(); }) {}

  bool is_shared() const override { return true; }
  std::string problem() const override { return redis_.outage(); }
  std::optional<std::string> trouble() override { return redis_.outage(); }

  std::optional<stored_record> fetch(const char* kind, const std::string& client,
                                     const std::string& id, const std::string& known) override {
    const auto reply =
        eval(redis_scripts::fetch, {key("record", kind, client, id), key("index", kind, client)},
             {known, ttl_, id});
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements == 0) return std::nullopt;
    stored_record found{client, id, {}};
    found.revision = text_of(reply->element[0]);
    if (reply->elements > 1) found.head = parse(reply->element[1]);
    bool whole = found.head.is_object();
    for (std::size_t at = 2; at < reply->elements; ++at) {
      found.items.push_back(parse(reply->element[at]));
      whole = whole && !found.items.back().is_discarded();
    }
    if (!whole) {
      log_.warning("a " + std::string(kind) + " of the store is ignored: no proxy wrote it");
      found.head = nullptr;
      found.items.clear();
    }
    return found;
  }

  std::vector<stored_record> list(const char* kind, const std::string& client) override {
    const auto reply = eval(redis_scripts::list, {key("index", kind, client)},
                            {key("record", kind, client, {}), ttl_});
    std::vector<stored_record> found;
    for (const auto* row : elements(reply.get())) {
      if (row->elements != 5) continue;
      stored_record one{client, text_of(row->element[0]), parse(row->element[4])};
      one.used_ms = number<std::int64_t>(row->element[1]);
      one.size = number<std::size_t>(row->element[2]);
      one.revision = text_of(row->element[3]);
      if (one.head.is_object()) found.push_back(std::move(one));
    }
    return found;
  }

  std::string find_part(const char* kind, const std::string& client,
                        const std::string& name) override {
    const auto reply = run({"GET", key("part", kind, client, name)});
    return text_of(reply.get());
  }

  bool write(const char* kind, const stored_record& record, std::size_t first,
             const std::optional<write_condition>& condition) override {
    const auto fresh = record.revision.empty() ? text::random_id("", 22) : record.revision;
    const auto terms = condition.value_or(write_condition{});
    std::vector<std::string> arguments{fresh,
                                       terms.lease,
                                       terms.revision,
                                       dump(record.head),
                                       std::to_string(first),
                                       ttl_,
                                       record.id,
                                       std::to_string(max_records),
                                       key("record", kind, record.client, {}),
                                       std::to_string(record.names.size()),
                                       {}};
    for (const auto& name : record.names) {
      arguments.push_back(key("part", kind, record.client, name));
    }
    for (const auto& item : record.items) arguments.push_back(dump(item));
    const std::vector<std::string> keys{key("record", kind, record.client, record.id),
                                        key("index", kind, record.client),
                                        key("lease", kind, record.client, record.id)};
    try {
      const auto reply = eval_in_time(redis_scripts::write, keys, arguments, 10);
      if (text_of(reply.get()) != "lost") return true;
    } catch (const api_error& failure) {
      log_.error(std::string(kind) + " not stored: " + failure.message);
      if (condition) throw;
      return false;
    }
    api_error error(error_kind::unavailable,
                    "another request took over the session meanwhile; it is as it was, try again");
    error.code = "session_lost";
    error.retry_after = std::chrono::seconds(1);
    throw error;
  }

  bool remove(const char* kind, const std::string& client, const std::string& id) override {
    const auto reply = eval(redis_scripts::remove,
                            {key("record", kind, client, id), key("index", kind, client)}, {id});
    return reply->integer > 0;
  }

  bool try_lease(const char* kind, const std::string& client, const std::string& id,
                 const std::string& lease) override {
    const auto keys = lease_keys(kind, client, id);
    const auto asked = steady_ms();
    const auto reply = eval(redis_scripts::lease, keys, {lease, lease_ttl, max_silence});
    if (reply->integer == 0) return false;
    ahead_ms_ = reply->integer - asked;
    const std::lock_guard<std::mutex> lock(mutex_);
    leases_[keys.front()] = lease;
    return true;
  }

  void release(const char* kind, const std::string& client, const std::string& id,
               const std::string& lease) override {
    const auto keys = lease_keys(kind, client, id);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto held = leases_.find(keys.front());
      if (held != leases_.end() && held->second == lease) leases_.erase(held);
    }
    try {
      eval(redis_scripts::release, keys, {lease});
    } catch (const api_error&) {  // it ends by itself
    }
  }

  std::string agree(const std::string& name, const std::string& mine) override {
    run({"SET", prefix + name, mine, "NX"});
    return text_of(run({"GET", prefix + name}).get());
  }

  std::optional<shared_count> count(const std::string& name, std::int64_t limit) override {
    return attempt([&] {
      const auto reply =
          eval(redis_scripts::count, {prefix + ("count:" + name), mark()}, {std::to_string(limit)});
      const auto rows = elements(reply.get());
      return shared_count{rows.at(0)->integer, rows.at(1)->integer > 0,
                          std::chrono::milliseconds(rows.at(2)->integer)};
    });
  }

  std::optional<shared_use> reserve(const std::string& client, const std::string& id,
                                    const budget& wanted, const options& limits) override {
    std::vector<std::string> arguments{
        id, std::to_string((limits.timeout + std::chrono::minutes(1)).count())};
    for (const auto* one : {&wanted, &limits.minute_budget, &limits.day_budget}) {
      arguments.push_back(std::to_string(one->requests));
      arguments.push_back(std::to_string(one->tokens));
      arguments.push_back(json(one->usd).dump());
    }
    return attempt([&] {
      const auto reply = eval(redis_scripts::reserve, budget_keys(client), arguments);
      const auto rows = elements(reply.get());
      const auto use = [&](std::size_t at) {
        return budget{number<std::int64_t>(rows.at(at)), number<std::int64_t>(rows.at(at + 1)),
                      decimal(rows.at(at + 2))};
      };
      const auto left = [&](std::size_t at) {
        return std::chrono::milliseconds(number<std::int64_t>(rows.at(at)));
      };
      return shared_use{text_of(rows.at(0)) == "1", use(1), use(4), use(7), left(10), left(11)};
    });
  }

  bool charge(const std::string& client, const std::string& id, const budget& used) override {
    auto keys = budget_keys(client);
    keys.push_back(mark());
    const auto done = attempt([&] {
      eval(redis_scripts::charge, keys, {id, std::to_string(used.tokens), json(used.usd).dump()});
      return true;
    });
    return done.has_value();
  }

  bool keeps_usage() const override { return true; }

  void add_usage(const usage_row& row) override {
    usage_step step{{usage_key(row.hour), mark()},
                    {std::to_string((row.hour + 90 * 24 + 1) * ms_per_hour)}};
    const auto add = [&](const char* what, const json& amount) {
      step.arguments.push_back(
          dump(json::array({row.key, row.model, row.dialect, row.account, what})));
      step.arguments.push_back(amount.dump());
    };
    add("answers", row.answers);
    for (std::size_t i = 0; i < token_kinds.size(); ++i) add(token_kinds[i], row.tokens[i]);
    add("usd", row.usd);
    send_usage(std::move(step), patience::lost);
  }

  std::vector<usage_row> sum_usage(const std::string& by, std::int64_t from) override {
    constexpr std::int64_t at_once = 240;
    const auto last = now_ms() / ms_per_hour + 1;  // its clock may be ahead
    std::map<std::string, usage_row> sums;
    for (auto hour = std::max(from, last - 91 * 24); hour <= last; hour += at_once) {
      std::vector<std::string> keys;
      for (auto one = hour; one < hour + at_once; ++one) keys.push_back(usage_key(one));
      const auto reply = eval(redis_scripts::read_usage, keys, {});
      const auto hours = elements(reply.get());
      for (std::size_t i = 0; i < hours.size(); ++i) {
        add_hour(hours[i], hour + static_cast<std::int64_t>(i), by, sums);
      }
    }
    std::vector<usage_row> rows;
    for (auto& entry : sums) rows.push_back(std::move(entry.second));
    return rows;
  }

 private:
  using patience = redis_connection::patience;

  static constexpr const char* prefix = "claude-openai:v1:";
  static constexpr const char* lease_ttl = "15000";
  static constexpr const char* max_silence = "5000";  ///< of one who waits for a lease
  static constexpr std::size_t max_records = 1'000;   ///< of one kind and client

  static std::string key(const char* what, const char* kind, const std::string& client) {
    return prefix + std::string(what) + ":" + kind + ":" + client;
  }
  static std::string key(const char* what, const char* kind, const std::string& client,
                         const std::string& id) {
    return key(what, kind, client) + ":" + id;
  }
  static std::vector<std::string> lease_keys(const char* kind, const std::string& client,
                                             const std::string& id) {
    return {key("lease", kind, client, id), key("queue", kind, client, id),
            key("asked", kind, client, id)};
  }
  /// A key of one addition alone: where its reply was lost, it is sent again, and counts once.
  static std::string mark() { return prefix + ("added:" + text::random_id("", 22)); }

  static std::vector<std::string> budget_keys(const std::string& client) {
    return {key("budget", "use", client), key("budget", "held", client)};
  }
  static std::string usage_key(std::int64_t hour) {
    return prefix + ("usage:" + std::to_string(hour));
  }

  static json parse(const redisReply* reply) {
    return try_parse_json(text_of(reply), max_line_depth);
  }
  template <class Number>
  static Number number(const redisReply* reply) {
    return text::try_number<Number>(text_of(reply)).value_or(0);
  }
  static double decimal(const redisReply* reply) {
    return std::strtod(text_of(reply).c_str(), nullptr);
  }
  static std::vector<const redisReply*> elements(const redisReply* reply) {
    return {reply->element, reply->element + reply->elements};
  }

  /// Throws a 503 when Redis is gone.
  redis_reply run(const std::vector<std::string>& words, patience wait = patience::lost) {
    try {
      return redis_.run(words, wait);
    } catch (const std::runtime_error& failure) {
      throw unavailable(failure.what());
    }
  }

  redis_reply eval(const char* script, const std::vector<std::string>& keys,
                   const std::vector<std::string>& arguments, patience wait = patience::lost) {
    std::vector<std::string> words{"EVAL", std::string(redis_scripts::common) + script,
                                   std::to_string(keys.size())};
    words.insert(words.end(), keys.begin(), keys.end());
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run(words, wait);
  }

  static std::int64_t steady_ms() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
  }

  /// `arguments[deadline]` becomes the time, by Redis's clock, when nobody waits for the reply any
  /// more: a Redis that stood still does not do later what its client was told has failed.
  redis_reply eval_in_time(const char* script, const std::vector<std::string>& keys,
                           std::vector<std::string>& arguments, std::size_t deadline) {
    for (bool again = false;; again = true) {
      const auto asked = steady_ms();
      arguments[deadline] = std::to_string(asked + ahead_ms_ + redis_connection::max_step.count());
      auto reply = eval(script, keys, arguments, patience::gone);
      if (reply->type != REDIS_REPLY_INTEGER) return reply;
      ahead_ms_ = reply->integer - asked;  // it is in time, so Redis's clock was set
      if (again) throw unavailable("Redis's clock is unsteady");
    }
  }

  /// What the work returns; nullopt when Redis is gone.
  template <class Work>
  static auto attempt(Work work) -> std::optional<decltype(work())> {
    try {
      return work();
    } catch (const std::exception&) {
      return std::nullopt;
    }
  }

  static void add_hour(const redisReply* hour, std::int64_t number_of_hour, const std::string& by,
                       std::map<std::string, usage_row>& sums) {
    const auto day =
        text::iso_time(std::chrono::system_clock::time_point(std::chrono::hours(number_of_hour)))
            .substr(0, 10);
    for (std::size_t at = 0; at + 1 < hour->elements; at += 2) {
      const auto field = parse(hour->element[at]);
      const auto amount = decimal(hour->element[at + 1]);
      const auto is_text = [](const json& part) { return part.is_string(); };
      if (!field.is_array() || field.size() != 5 ||
          !std::all_of(field.begin(), field.end(), is_text)) {
        continue;
      }
      const auto column = by == "key" ? 0U : by == "model" ? 1U : by == "dialect" ? 2U : 3U;
      const auto name = by == "day" ? day : field[column].get<std::string>();
      auto& sum = sums[name];
      sum.key = name;
      const auto what = field[4].get<std::string>();
      if (what == "usd") sum.usd += amount;
      if (what == "answers") sum.answers += static_cast<std::int64_t>(amount);
      for (std::size_t i = 0; i < token_kinds.size(); ++i) {
        if (what == token_kinds[i]) sum.tokens[i] += static_cast<std::int64_t>(amount);
      }
    }
  }

  /// What is added to an hour's use. The mark is its own, so that it is not added twice.
  struct usage_step {
    std::vector<std::string> keys;
    std::vector<std::string> arguments;
  };

  /// What cannot be sent now is sent later.
  void send_usage(usage_step step, patience wait) {
    const auto done = attempt([&] {
      eval(redis_scripts::add_usage, step.keys, step.arguments, wait);
      return true;
    });
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!done && unsent_.size() < max_records) unsent_.push_back(std::move(step));
  }

  /// Learns whether Redis is still there, renews the leases that are held, and adds what was used
  /// while it was gone.
  void tick() {
    std::vector<std::string> keys;
    std::vector<std::string> arguments{lease_ttl};
    std::vector<usage_step> unsent;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [name, holder] : leases_) {
        keys.push_back(name);
        arguments.push_back(holder);
      }
      unsent.swap(unsent_);
    }
    for (auto& step : unsent) send_usage(std::move(step), patience::none);
    attempt([&] {
      const auto asked = steady_ms();
      ahead_ms_ = eval(redis_scripts::renew, keys, arguments, patience::none)->integer - asked;
      return true;
    });
  }

  const std::string ttl_;
  const logger log_;
  std::mutex mutex_;
  std::map<std::string, std::string> leases_;  ///< of this proxy: who has each
  std::vector<usage_step> unsent_;
  std::atomic<std::int64_t> ahead_ms_{0};  ///< its clock of the steady one, at most
  redis_connection redis_;                 ///< its thread uses all above
};

#endif

/// The store that the options name. Throws as `sqlite_store` and `redis_store` do.
inline std::shared_ptr<state_store> open_store([[maybe_unused]] const options& settings) {
#ifdef CLAUDE_OPENAI_REDIS
  if (is_redis(settings)) return std::make_shared<redis_store>(settings);
#endif
#ifdef CLAUDE_OPENAI_SQLITE
  if (!store_path(settings).empty()) return std::make_shared<sqlite_store>(settings);
#endif
  return std::make_shared<state_store>();
}

//================================================================================================
// [22] sessions - histories that the proxy keeps for a client
// uses: text, log, json_access, options, conversation, fields, anthropic_messages, cli_protocol,
//       process, store | thread-safe
//================================================================================================

struct session_info {
  std::string id;
  std::chrono::system_clock::time_point created;
  std::chrono::system_clock::time_point last_accessed;
  std::chrono::system_clock::time_point expires;
  std::size_t messages = 0;
};

inline media_part decode_media(const json& block) {
  const auto& source = member_of(block, "source");
  media_part media;
  if (string_of(block, "type") == "document") media.kind = media_part::media_kind::document;
  media.media_type = string_of(source, "media_type");
  media.data = string_of(source, "data");
  media.url = string_of(source, "url");
  media.title = string_of(block, "title");
  media.more = block;
  if (string_of(block, "type") == "search_result") {
    media.kind = media_part::media_kind::document;
    return media;
  }
  for (const char* own : {"type", "title"}) media.more.erase(own);
  if (string_of(source, "type") != "content") media.more.erase("source");
  return media;
}

inline tool_result_part decode_tool_result(const json& block) {
  tool_result_part result{string_of(block, "tool_use_id"), {}, boolean_of(block, "is_error")};
  for (const auto& piece : member_of(block, "content")) {
    const auto words = string_of(piece, "text");
    if (!words.empty()) {
      result.content.emplace_back(text_part{words});
    } else if (string_of(piece, "type") != "text") {
      result.content.emplace_back(decode_media(piece));
    }
  }
  return result;
}

/// A message of a stored session, which `render_part` has written; nullopt when it is none.
inline std::optional<message> decode_message(const json& stored) {
  message entry;
  if (string_of(stored, "role") == "assistant") entry.author = role::assistant;
  const auto& content = member_of(stored, "content");
  if (!content.is_array()) return std::nullopt;
  for (const auto& block : content) {
    const auto type = string_of(block, "type");
    const bool cites = type == "text" && !member_of(block, "citations").empty();
    if (cites || type == "server_tool_use" || text::ends_with(type, "_tool_result")) {
      entry.parts.emplace_back(api_block_part{block});
    } else if (type == "text") {
      entry.parts.emplace_back(text_part{string_of(block, "text")});
    }
    if (type == "image" || type == "document" || type == "search_result") {
      entry.parts.emplace_back(decode_media(block));
    }
    if (type == "tool_use") {
      entry.parts.emplace_back(tool_call_part{string_of(block, "id"), string_of(block, "name"),
                                              member_of(block, "input")});
    }
    if (type == "tool_result") entry.parts.emplace_back(decode_tool_result(block));
    if (type == "thinking" || type == "redacted_thinking") {
      entry.parts.emplace_back(thinking_part{
          string_of(block, "thinking"), string_of(block, "signature"), string_of(block, "data")});
    }
  }
  return entry;
}

/// Without its tools the API does not get back what they have found, only the text.
inline void drop_searches(std::vector<message>& history) {
  for (auto& entry : history) {
    std::vector<content_part> left;
    for (auto& part : entry.parts) {
      const auto* kept = std::get_if<api_block_part>(&part);
      const auto words = kept ? string_of(kept->block, "text") : std::string();
      if (kept == nullptr) left.push_back(std::move(part));
      if (!words.empty()) left.emplace_back(text_part{words});
    }
    entry.parts = std::move(left);
  }
}

inline bool operator==(const text_part& a, const text_part& b) { return a.text == b.text; }
inline bool operator==(const media_part& a, const media_part& b) {
  return std::tie(a.kind, a.media_type, a.data, a.url, a.title, a.more) ==
         std::tie(b.kind, b.media_type, b.data, b.url, b.title, b.more);
}
inline bool operator==(const thinking_part& a, const thinking_part& b) {
  return std::tie(a.text, a.signature, a.redacted) == std::tie(b.text, b.signature, b.redacted);
}
inline bool operator==(const tool_call_part& a, const tool_call_part& b) {
  return std::tie(a.id, a.name, a.input) == std::tie(b.id, b.name, b.input);
}
inline bool operator==(const tool_result_part& a, const tool_result_part& b) {
  return std::tie(a.call_id, a.content, a.is_error) == std::tie(b.call_id, b.content, b.is_error);
}
inline bool operator==(const api_block_part& a, const api_block_part& b) {
  return a.block == b.block;
}
inline bool operator==(const message& a, const message& b) {
  return std::tie(a.author, a.parts) == std::tie(b.author, b.parts);
}

/// How much text and data the messages hold, roughly.
inline std::size_t bytes_of(const std::vector<message>& messages) {
  constexpr std::size_t each = 64;
  const auto of_media = [](const media_part& media) {
    return media.data.size() + (media.more.empty() ? 0 : memory_of(media.more));
  };
  const auto of_text = [](const text_part& plain) { return plain.text.size(); };
  std::size_t bytes = 0;
  for (const auto& entry : messages) {
    for (const auto& part : entry.parts) {
      bytes +=
          each +
          std::visit(overloaded{of_text, of_media,
                                [](const thinking_part& thought) {
                                  return thought.text.size() + thought.signature.size() +
                                         thought.redacted.size();
                                },
                                [](const tool_call_part& call) { return memory_of(call.input); },
                                [](const api_block_part& kept) { return memory_of(kept.block); },
                                [&](const tool_result_part& result) {
                                  std::size_t sum = 0;
                                  for (const auto& piece : result.content) {
                                    sum += std::visit(overloaded{of_text, of_media}, piece);
                                  }
                                  return sum;
                                }},
                     part);
    }
  }
  return bytes;
}

/// What each client holds of a store that all share. Where that is too much, the client that holds
/// most gives something up: nobody pushes out what is another's, as long as he holds less.
class shared_store {
 public:
  shared_store(std::size_t max_entries, std::size_t max_bytes)
      : max_entries_(max_entries), max_bytes_(max_bytes) {}

  void add(const std::string& client, std::size_t bytes) {
    for (auto* sum : {&all_, &clients_[client]}) {
      ++sum->entries;
      sum->bytes += bytes;
    }
  }

  void remove(const std::string& client, std::size_t bytes) {
    for (auto* sum : {&all_, &clients_[client]}) {
      --sum->entries;
      sum->bytes -= bytes;
    }
  }

  bool is_full() const { return all_.entries > max_entries_ || all_.bytes > max_bytes_; }

  /// The client that holds most, of entries or of bytes. Only where it is full.
  const std::string& largest_client() const {
    const auto share = [this](const holding& sum) {
      return std::max(static_cast<double>(sum.entries) / static_cast<double>(max_entries_),
                      static_cast<double>(sum.bytes) / static_cast<double>(max_bytes_));
    };
    return std::max_element(
               clients_.begin(), clients_.end(),
               [&](const auto& a, const auto& b) { return share(a.second) < share(b.second); })
        ->first;
  }

 private:
  struct holding {
    std::size_t entries = 0;
    std::size_t bytes = 0;
  };

  std::size_t max_entries_;
  std::size_t max_bytes_;
  holding all_;
  std::map<std::string, holding> clients_;
};

/// Keeps sessions by client and id, in memory and in a store: each turn is added to it. A session
/// is used by one request at a time; others wait in order. Of a shared store's sessions it holds
/// copies, which are compared before they are used.
class session_store {
 public:
  class session_lock;
  using system_time = std::chrono::system_clock::time_point;

  /// Reads what is stored, and takes over what older versions stored in files of a directory.
  explicit session_store(const options& settings,
                         std::shared_ptr<state_store> state = std::make_shared<state_store>())
      : settings_(settings), state_(std::move(state)) {
    for (auto& record : state_->read(kind)) load(std::move(record));
    const auto& directory = settings_.session_directory;
    if (directory.empty() || !state_->problem().empty()) return;
    for (const auto& name : session_files::list(directory)) {
      const auto path = directory + "/" + name;
      if (text::ends_with(name, session_files::session)) take_over(path);
      if (session_files::is_own(name, session_files::unfinished)) ::unlink(path.c_str());
    }
  }
  session_store(const session_store&) = delete;
  session_store& operator=(const session_store&) = delete;

  /// The salt of the names that clients have in the store: in a file beside it, since a copy of the
  /// store alone shall tell nothing of keys; in a shared store itself; else made for this run.
  /// Throws `std::runtime_error` for a stored one that cannot be used.
  std::string salt() const {
    auto fresh = text::random_id("", salt_length);
    if (state_->is_shared()) return state_->agree(session_files::salt, fresh);
    if (store_path(settings_).empty()) return fresh;
    const auto& directory = settings_.session_directory;
    const auto path =
        directory.empty() ? settings_.store + ".salt" : directory + "/" + session_files::salt;
    const unique_fd made(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (made && write_all(made.get(), fresh) && ::fsync(made.get()) == 0) return fresh;
    std::string problem;
    const auto kept = read_all(open_own_file(path, problem, O_NOFOLLOW));
    if (kept.size() == salt_length) return kept;
    throw std::runtime_error(path +
                             " is damaged; without it nobody finds again what is stored of "
                             "client keys: restore it, or remove it");
  }

  void expire() {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
  }

  void forget(const std::set<std::string>& clients) {
    state_->forget(kind, clients);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto kept = sessions_.begin(); kept != sessions_.end();) {
      kept = clients.count(kept->first.first) > 0 ? forget(kept) : std::next(kept);
    }
  }

  /// Of all clients; of a shared store's those that are held here.
  std::size_t size() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return sessions_.size();
  }

  /// The client's sessions, oldest first.
  std::vector<session_info> list(const std::string& client) {
    state_->require();
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    std::vector<session_info> found;
    for (const auto& record : state_->list(kind, client)) found.push_back(describe(record));
    for (const auto& [key, kept] : sessions_) {
      if (state_->is_shared()) break;
      if (key.first == client && !kept->history.empty()) found.push_back(describe(*kept));
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
      return std::tie(a.created, a.id) < std::tie(b.created, b.id);
    });
    return found;
  }

  /// One of them; asking for it counts as use.
  std::optional<session_info> get(const std::string& client, const std::string& id) {
    state_->require();
    if (state_->is_shared()) {
      auto stored = state_->fetch(kind, client, id);
      if (!stored || stored->items.empty()) return std::nullopt;
      stored->size = stored->items.size();
      stored->used_ms = now_ms();
      return describe(*stored);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    const auto found = sessions_.find({client, id});
    if (found == sessions_.end() || found->second->history.empty()) return std::nullopt;
    found->second->touch();
    return describe(*found->second);
  }

  /// False when there is none. A request that is using it ends as if nothing had happened.
  bool remove(const std::string& client, const std::string& id) {
    state_->require();
    const bool removed = state_->is_shared() && state_->remove(kind, client, id);
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    const auto found = sessions_.find({client, id});
    const bool is_kept = found != sessions_.end() && !found->second->history.empty();
    if (is_kept) forget(found);
    return state_->is_shared() ? removed : is_kept;
  }

 private:
  using client_and_id = std::pair<std::string, std::string>;

  static constexpr std::size_t max_kept = 10'000;
  static constexpr std::size_t max_kept_bytes = 64 * 1024 * 1024;

  struct session {
    std::string client;
    std::string id;
    std::string system;
    std::vector<message> history;
    std::size_t stored = 0;  ///< messages of it that the store holds
    std::string revision;    ///< in a shared store; empty: not there yet, or unknown
    system_time created;
    system_time last_accessed;
    steady_time last_used;    ///< the same by a clock that does not jump: this one decides
    std::size_t bytes = 0;    ///< of the history, roughly
    std::int64_t tokens = 0;  ///< the same, with what the turns at it and before it may add
    bool busy = false;
    std::deque<const wake_signal*> waiting;

    void touch() {
      last_accessed = std::chrono::system_clock::now();
      last_used = std::chrono::steady_clock::now();
    }
  };
  using sessions = std::map<client_and_id, std::shared_ptr<session>>;

  // Everything below needs the lock.

  session_info describe(const session& kept) const {
    return {kept.id, kept.created, kept.last_accessed, kept.last_accessed + settings_.session_ttl,
            kept.history.size()};
  }

  /// What is said of a shared store's record.
  session_info describe(const stored_record& kept) const {
    const auto used =
        std::chrono::system_clock::time_point(std::chrono::milliseconds(kept.used_ms));
    return {kept.id, past_time(kept.head, "created_ms"), used, used + settings_.session_ttl,
            kept.size};
  }

  /// Of a shared store's session only the copy.
  sessions::iterator forget(sessions::iterator gone) {
    if (!state_->is_shared()) state_->remove(kind, gone->first.first, gone->first.second);
    return sessions_.erase(gone);
  }

  /// Those nobody has used for too long go, and where there are too many the least recently used
  /// of the client that holds most.
  void sweep() {
    const auto oldest = std::chrono::steady_clock::now() - settings_.session_ttl;
    shared_store held(max_kept, max_kept_bytes);
    for (auto kept = sessions_.begin(); kept != sessions_.end();) {
      const bool expired = !kept->second->busy && kept->second->last_used < oldest;
      if (!expired) held.add(kept->first.first, kept->second->bytes);
      kept = expired ? forget(kept) : std::next(kept);
    }
    while (held.is_full()) {
      const auto& client = held.largest_client();
      const auto order = [&](const auto& entry) {
        return std::make_tuple(entry.first.first != client, entry.second->busy,
                               entry.second->last_used);
      };
      const auto last = std::min_element(
          sessions_.begin(), sessions_.end(),
          [&](const auto& left, const auto& right) { return order(left) < order(right); });
      if (last->second->busy) return;
      if (!state_->is_shared()) {
        settings_.log.warning("a session was forgotten: there are too many, or they are too long");
      }
      held.remove(client, last->second->bytes);
      forget(last);
    }
  }

  static json encode(const message& entry) {
    json content = json::array();
    for (const auto& part : entry.parts) content.push_back(render_part(part));
    return json::object(
        {{"role", entry.author == role::user ? "user" : "assistant"}, {"content", content}});
  }

  /// Adds what the store does not hold yet, or no longer holds so. Where that fails, the next turn
  /// tries it again, but for a shared store, where it throws: the turn has failed.
  void save(session& kept, std::size_t unchanged, const std::string& lease = {}) {
    const auto first = std::min(kept.stored, unchanged);
    stored_record record{kept.client, kept.id,
                         json::object({{"system", kept.system},
                                       {"created_ms", to_ms(kept.created)},
                                       {"last_accessed_ms", to_ms(kept.last_accessed)}})};
    for (auto at = first; at < kept.history.size(); ++at) {
      record.items.push_back(encode(kept.history[at]));
    }
    if (state_->is_shared()) {
      record.revision = text::random_id("", 22);
      const write_condition condition{lease, std::exchange(kept.revision, {})};
      state_->write(kind, record, first, condition);
      kept.revision = record.revision;
      kept.stored = kept.history.size();
      return;
    }
    kept.stored = state_->write(kind, record, first) ? kept.history.size() : first;
  }

  /// Brings a copy up to what the shared store holds. Needs the lease, and no lock.
  void refresh(session& kept) {
    auto stored = state_->fetch(kind, kept.client, kept.id, kept.revision);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stored && stored->revision == kept.revision) return;
    const auto expected = kept.tokens - anthropic_messages::estimate_tokens(kept.history);
    fill(kept, stored.value_or(stored_record{}));
    if (!stored) kept.created = std::chrono::system_clock::now();
    kept.tokens += expected;
    kept.touch();
  }

  static constexpr const char* kind = "session";
  static constexpr std::size_t salt_length = 43;

  /// The session is still the one that its id names.
  bool is_kept(const std::shared_ptr<session>& asked) const {
    const auto found = sessions_.find({asked->client, asked->id});
    return found != sessions_.end() && found->second == asked;
  }

  /// All that a record tells.
  static void fill(session& kept, const stored_record& record) {
    kept.revision = record.revision;
    kept.system = string_of(record.head, "system");
    kept.created = past_time(record.head, "created_ms");
    kept.last_accessed = past_time(record.head, "last_accessed_ms");
    kept.history.clear();
    for (const auto& entry : record.items) {
      if (auto decoded = decode_message(entry)) kept.history.push_back(std::move(*decoded));
    }
    kept.stored = kept.history.size() == record.items.size() ? record.items.size() : 0;
    kept.bytes = bytes_of(kept.history);
    kept.tokens = anthropic_messages::estimate_tokens(kept.history);
  }

  /// Null for a record that is no session.
  std::shared_ptr<session> load(stored_record record) {
    const auto kept = std::make_shared<session>();
    kept->client = std::move(record.client);
    kept->id = std::move(record.id);
    fill(*kept, record);
    const auto age = std::chrono::system_clock::now() - kept->last_accessed;
    kept->last_used = std::chrono::steady_clock::now() -
                      std::max(age, std::chrono::system_clock::duration::zero());
    if (kept->id.empty() || kept->history.empty()) return nullptr;
    return sessions_[{kept->client, kept->id}] = kept;
  }

  /// A file of an older version's becomes a record; what is stored already is newer.
  void take_over(const std::string& path) {
    std::string problem;
    const auto bytes = read_all(open_own_file(path, problem, O_NOFOLLOW));
    const json stored = try_parse_json(bytes, max_line_depth);
    stored_record record{string_of(stored, "client"), string_of(stored, "id"), stored};
    for (const auto& entry : member_of(stored, "messages")) record.items.push_back(entry);
    const bool ours = integer_of(stored, "version") == 1 &&
                      member_of(stored, "client").is_string() &&
                      integer_of(stored, "last_accessed_ms") > 0;
    const bool known = sessions_.count({record.client, record.id}) > 0;
    const auto kept = ours && !known ? load(std::move(record)) : nullptr;
    if (!kept && !known) {
      settings_.log.warning("session file skipped, " +
                            (problem.empty() ? "it is not whole, or none" : problem) + ": " + path);
      return;
    }
    if (kept) save(*kept, std::exchange(kept->stored, 0));
    if (known || kept->stored > 0) ::unlink(path.c_str());
  }

  const options& settings_;
  const std::shared_ptr<state_store> state_;
  mutable std::mutex mutex_;
  sessions sessions_;
};

inline json render_session(const session_info& kept) {
  return json::object({{"session_id", kept.id},
                       {"created_at", text::iso_time(kept.created)},
                       {"last_accessed", text::iso_time(kept.last_accessed)},
                       {"message_count", kept.messages},
                       {"expires_at", text::iso_time(kept.expires)}});
}

inline json render_sessions(const std::vector<session_info>& all) {
  json rows = json::array();
  for (const auto& kept : all) rows.push_back(render_session(kept));
  return json::object({{"sessions", rows}, {"total", all.size()}});
}

/// Expired sessions are gone before they are counted.
inline json render_session_stats(const std::vector<session_info>& all,
                                 std::chrono::milliseconds time_to_live) {
  std::size_t messages = 0;
  for (const auto& kept : all) messages += kept.messages;
  const std::chrono::duration<double, std::ratio<3600>> hours = time_to_live;
  const json stats = json::object(
      {{"active_sessions", all.size()}, {"expired_sessions", 0}, {"total_messages", messages}});
  return json::object({{"session_stats", stats},
                       {"cleanup_interval_minutes", 1},
                       {"default_ttl_hours", hours.count()}});
}

/// One request's use of a session. Waits for its turn; its owner polls `fd` meanwhile. One thread;
/// must not outlive the store.
class session_store::session_lock {
 public:
  /// `tokens` is what the turn may add to the history, roughly.
  session_lock(session_store& owner, const std::string& client, const std::string& id,
               std::int64_t tokens = 0)
      : store_(owner), tokens_(tokens) {
    store_.state_->require();
    const std::lock_guard<std::mutex> lock(store_.mutex_);
    store_.sweep();
    auto& slot = store_.sessions_[{client, id}];
    if (!slot) {
      slot = std::make_shared<session>();
      slot->client = client;
      slot->id = id;
      slot->created = std::chrono::system_clock::now();
    }
    slot->touch();
    session_ = slot;
    history_tokens_ = std::exchange(slot->tokens, slot->tokens + tokens_);
    entered_ = !session_->busy && session_->waiting.empty();
    if (entered_) {
      session_->busy = true;
    } else {
      session_->waiting.push_back(&wake_);
    }
  }
  session_lock(const session_lock&) = delete;
  session_lock& operator=(const session_lock&) = delete;

  ~session_lock() {
    if (asked_) store_.state_->release(kind, session_->client, session_->id, lease_);
    const std::lock_guard<std::mutex> lock(store_.mutex_);
    auto& waiting = session_->waiting;
    session_->tokens -= tokens_;
    if (!entered_) {
      const bool was_next = !session_->busy && waiting.front() == &wake_;
      waiting.erase(std::find(waiting.begin(), waiting.end(), &wake_));
      if (!was_next) return;
    }
    session_->busy = false;
    if (!waiting.empty()) {
      waiting.front()->raise();
      return;
    }
    const bool is_copy = !session_->revision.empty() || !store_.state_->is_shared();
    if (session_->history.empty() || !is_copy) drop();  // a failed first turn, or an unknown one
  }

  /// Readable when `try_enter` may succeed.
  int fd() const { return entered_ ? -1 : wake_.fd(); }

  /// True once the session is this request's alone, and as it is stored. Of a shared store ask
  /// again and again: others who use it do not raise a signal here.
  bool try_enter() {
    if (!entered_) enter();
    if (!entered_ || leased_ || !store_.state_->is_shared()) return entered_;
    asked_ = true;
    if (!store_.state_->try_lease(kind, session_->client, session_->id, lease_)) return false;
    store_.refresh(*session_);
    leased_ = true;
    return true;
  }

  const std::string& system() const { return session_->system; }
  const std::vector<message>& history() const { return session_->history; }

  /// How long the history may be by then, roughly: with what the turns before this one may add.
  std::int64_t history_tokens() const { return history_tokens_; }

  /// The session as it is after a turn that went well. One that was deleted meanwhile stays so.
  /// Throws a 503 when a shared store does not take it: then the session is as it was.
  void commit(std::string system, std::vector<message> history) {
    std::unique_lock<std::mutex> lock(store_.mutex_);
    const auto& before = session_->history;
    const auto changed =
        std::mismatch(before.begin(), before.end(), history.begin(), history.end()).first;
    const auto unchanged = static_cast<std::size_t>(changed - before.begin());
    session_->system = std::move(system);
    session_->tokens -= anthropic_messages::estimate_tokens(session_->history);
    session_->history = std::move(history);
    session_->tokens += anthropic_messages::estimate_tokens(session_->history);
    session_->bytes = bytes_of(session_->history);
    session_->touch();
    if (!store_.is_kept(session_)) return;
    if (store_.state_->is_shared()) lock.unlock();  // the session is this request's alone
    store_.save(*session_, unchanged, lease_);
  }

 private:
  void enter() {
    const std::lock_guard<std::mutex> lock(store_.mutex_);
    if (session_->busy || session_->waiting.front() != &wake_) return;
    session_->waiting.pop_front();
    session_->busy = true;
    entered_ = true;
  }

  /// Needs the lock.
  void drop() {
    if (store_.is_kept(session_)) store_.sessions_.erase({session_->client, session_->id});
  }

  session_store& store_;
  std::int64_t tokens_;
  std::int64_t history_tokens_ = 0;
  std::shared_ptr<session> session_;
  wake_signal wake_;
  bool entered_ = false;
  const std::string lease_ = text::random_id("", 22);  ///< of a shared store's session
  bool asked_ = false;                                 ///< for the lease
  bool leased_ = false;
};

//================================================================================================
// [23] responses - answers that clients of the Responses API may refer to
// uses: text, errors, json_access, options, process, store, sessions | thread-safe
//================================================================================================

/// Keeps responses by client and id, in memory and those that have ended in a store, the latest
/// thousand and for as long as sessions: so that `previous_response_id` and items by their id can
/// be answered for. With a shared store, memory has only those under way, and what could not be
/// stored.
class response_store {
 public:
  /// A response under way, until it is kept or given up.
  class running;

  /// Reads what is stored. A response that another refers to was in use when that one was.
  explicit response_store(const options& settings,
                          std::shared_ptr<state_store> state = std::make_shared<state_store>())
      : settings_(settings), state_(std::move(state)) {
    std::multimap<clock::time_point, client_and_id, std::greater<>> newest_first;
    for (auto& record : state_->read(kind)) {
      const client_and_id key{record.client, record.id};
      kept_[key] = decode(std::move(record));
      newest_first.emplace(kept_[key]->since, key);
    }
    for (const auto& [since, key] : newest_first) {
      const auto before = kept_.find({key.first, kept_[key]->previous});
      if (before == kept_.end()) continue;
      before->second->since = std::max(before->second->since, kept_[key]->since);
    }
  }
  response_store(const response_store&) = delete;
  response_store& operator=(const response_store&) = delete;

  void expire() {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
  }

  /// The body with all that it refers to in its place: the input and output of the responses before
  /// it, and the items that are named by their id. Throws a 404 for what is not kept.
  json expand(const std::string& client, json body) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    const auto previous = reader(body).find("previous_response_id");
    json input = json::array();
    if (previous) add_history(client, previous->string(), input);
    const auto& given = member_of(body, "input");
    if (given.is_string()) {
      input.push_back(json::object({{"role", "user"}, {"content", given}}));
    } else if (given.is_array()) {
      for (auto& item : resolve(client, given)) input.push_back(std::move(item));
    } else {
      return body;  // parsing says what is wrong with it
    }
    body["input"] = std::move(input);
    return body;
  }

  /// Announces the response that answers this body.
  std::shared_ptr<running> begin(const std::string& client, const json& body, json response);

  std::optional<json> get(const std::string& client, const std::string& id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    const auto found = find(client, id);
    if (!found) return std::nullopt;
    return found->response;
  }

  /// What the client sent for it, without what it referred to.
  std::optional<json> input_items(const std::string& client, const std::string& id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    const auto found = find(client, id);
    if (!found) return std::nullopt;
    return found->input;
  }

  bool remove(const std::string& client, const std::string& id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
    if (!find(client, id)) return false;
    if (state_->is_shared()) state_->remove(kind, client, id);
    if (const auto found = kept_.find({client, id}); found != kept_.end()) forget(found);
    return true;
  }

  void forget(const std::set<std::string>& clients) {
    state_->forget(kind, clients);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto kept = kept_.begin(); kept != kept_.end();) {
      kept = clients.count(kept->first.first) > 0 ? forget(kept) : std::next(kept);
    }
  }

  /// Ends the answer if it is still under way, in this proxy; one that has ended stays as it is.
  std::optional<json> cancel(const std::string& client, const std::string& id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = find(client, id);
    if (!found) return std::nullopt;
    if (const auto signal = found->cancel.lock()) {
      signal->raise();
      found->response["status"] = "cancelled";
    }
    return found->response;
  }

 private:
  using client_and_id = std::pair<std::string, std::string>;
  using clock = std::chrono::steady_clock;

  static constexpr const char* kind = "response";
  static constexpr std::size_t max_kept = 1000;
  static constexpr std::size_t max_kept_bytes = 64 * 1024 * 1024;

  struct kept_response {
    json input = json::array();  ///< items
    json response;
    std::string previous;  ///< id; empty: none
    std::size_t bytes = 0;
    clock::time_point since;
    std::weak_ptr<const wake_signal> cancel;  ///< while it is under way
  };

  /// Bytes that a request may put in by referring to them, so that a short one does not become a
  /// huge one.
  struct references {
    std::size_t bytes = 16 * 1024 * 1024;

    void take(std::size_t more) {
      if (more > bytes) {
        throw api_error(error_kind::too_large, "what the input refers to is too long");
      }
      bytes -= more;
    }
  };

  using shared_response = std::shared_ptr<kept_response>;
  using responses = std::map<client_and_id, shared_response>;

  // All below needs the lock.

  static shared_response decode(stored_record record) {
    auto kept = std::make_shared<kept_response>();
    for (auto& item : record.items) kept->input.push_back(std::move(item));
    kept->response = member_of(record.head, "response");
    kept->previous = string_of(record.head, "previous");
    kept->bytes = memory_of(kept->input) + memory_of(kept->response);
    const auto age = std::max<std::int64_t>(0, now_ms() - integer_of(record.head, "used_ms"));
    kept->since = clock::now() - std::chrono::milliseconds(age);
    return kept;
  }

  /// Of a response that has ended. In a shared store it lies from then on; that may take a second.
  void save(const client_and_id& key, std::unique_lock<std::mutex>& lock) {
    const auto kept = kept_.at(key);
    stored_record record{
        key.first,
        key.second,
        json::object(
            {{"response", kept->response}, {"previous", kept->previous}, {"used_ms", now_ms()}}),
        {kept->input.begin(), kept->input.end()}};
    if (!state_->is_shared()) {
      state_->write(kind, record);
      return;
    }
    for (const json* items : {&std::as_const(kept->input), &member_of(kept->response, "output")}) {
      for (const auto& item : *items) {
        if (const auto id = string_of(item, "id"); !id.empty()) record.names.push_back(id);
      }
    }
    lock.unlock();
    const bool stored = state_->write(kind, record);
    lock.lock();
    if (stored) kept_.erase(key);
  }

  /// Of a shared store's response only what is here.
  responses::iterator forget(responses::iterator gone) {
    if (!state_->is_shared()) state_->remove(kind, gone->first.first, gone->first.second);
    return kept_.erase(gone);
  }

  /// Null for none. Throws when there is none here, and the store, where it may be, cannot be used.
  shared_response find(const std::string& client, const std::string& id) {
    const auto found = kept_.find({client, id});
    if (found != kept_.end()) return found->second;
    state_->require();
    auto stored = state_->fetch(kind, client, id);
    if (!stored || !member_of(stored->head, "response").is_object()) return nullptr;
    return decode(std::move(*stored));
  }

  void sweep() {
    const auto oldest = clock::now() - settings_.session_ttl;
    shared_store held(max_kept, max_kept_bytes);
    for (auto one = kept_.begin(); one != kept_.end();) {
      const bool expired = one->second->since < oldest && one->second->cancel.expired();
      if (!expired) held.add(one->first.first, one->second->bytes);
      one = expired ? forget(one) : std::next(one);
    }
    while (held.is_full()) {
      const auto& client = held.largest_client();
      const auto order = [&](const auto& entry) {
        return std::make_tuple(entry.first.first != client, entry.second->since);
      };
      const auto first =
          std::min_element(kept_.begin(), kept_.end(),
                           [&](const auto& a, const auto& b) { return order(a) < order(b); });
      held.remove(client, first->second->bytes);
      forget(first);
    }
  }

  shared_response require(const std::string& client, const std::string& id) {
    auto found = find(client, id);
    if (found) return found;
    api_error error(error_kind::not_found,
                    "Previous response with id '" + text::repair_utf8(id) +
                        "' not found; this server keeps the latest ones, for " +
                        std::to_string(settings_.session_ttl.count() / 1000) + " s",
                    "previous_response_not_found");
    error.param = "previous_response_id";
    throw error;
  }

  /// A conversation that goes on does not expire, nor does its beginning.
  void add_history(const std::string& client, const std::string& id, json& input) {
    std::vector<shared_response> chain;
    references left;
    for (auto next = id; !next.empty(); next = chain.back()->previous) {
      chain.push_back(require(client, next));
      chain.back()->since = clock::now();
      left.take(chain.back()->bytes);
    }
    for (auto one = chain.rbegin(); one != chain.rend(); ++one) {
      for (const auto& item : (*one)->input) input.push_back(item);
      for (const auto& item : member_of((*one)->response, "output")) input.push_back(item);
    }
  }

  /// `{"type":"item_reference","id"}`, or the id alone.
  static bool is_reference(const json& item) {
    if (string_of(item, "id").empty()) return false;
    return item.size() == 1 || string_of(item, "type") == "item_reference";
  }

  /// Fills in the client's kept items that have these ids; the first one of each. Returns what
  /// they are parts of.
  std::vector<shared_response> find_items(const std::string& client,
                                          std::map<std::string, const json*>& wanted) {
    std::vector<shared_response> searched;
    const auto look_into = [&](const shared_response& kept) {
      for (const json* items :
           {&std::as_const(kept->input), &member_of(kept->response, "output")}) {
        for (const auto& item : *items) {
          const auto found = wanted.find(string_of(item, "id"));
          if (found != wanted.end() && found->second == nullptr) found->second = &item;
        }
      }
      searched.push_back(kept);
    };
    for (const auto& [key, kept] : kept_) {
      if (key.first == client) look_into(kept);
    }
    for (const auto& [id, item] : wanted) {
      const auto whole = item == nullptr ? state_->find_part(kind, client, id) : std::string();
      if (const auto kept = whole.empty() ? nullptr : find(client, whole)) look_into(kept);
    }
    return searched;
  }

  /// The items, with those that are kept in place of the references to them. What is not kept
  /// stays: parsing refuses it.
  json resolve(const std::string& client, const json& items) {
    std::map<std::string, const json*> known;
    for (const auto& item : items) {
      if (is_reference(item)) known.emplace(string_of(item, "id"), nullptr);
    }
    std::vector<shared_response> searched;
    if (!known.empty()) searched = find_items(client, known);
    references left;
    json resolved = json::array();
    for (const auto& item : items) {
      const auto* found = is_reference(item) ? known.at(string_of(item, "id")) : nullptr;
      if (found != nullptr) left.take(dump(*found).size());
      resolved.push_back(found == nullptr ? item : *found);
    }
    return resolved;
  }

  const options& settings_;
  const std::shared_ptr<state_store> state_;
  std::mutex mutex_;
  responses kept_;
};

/// One response under way. Its owner is the request that it answers. One whose client leaves is
/// cancelled if it was streamed, and else forgotten: nobody has learnt its id.
class response_store::running {
 public:
  running(response_store& owner, client_and_id key, bool streamed)
      : store_(owner),
        key_(std::move(key)),
        cancel_(std::make_shared<const wake_signal>()),
        is_id_known_(streamed) {}
  running(const running&) = delete;
  running& operator=(const running&) = delete;
  ~running() {
    std::unique_lock<std::mutex> lock(store_.mutex_);
    const auto found = store_.kept_.find(key_);
    if (ended_ || found == store_.kept_.end()) return;
    found->second->response["status"] = "cancelled";
    if (!is_id_known_) {
      store_.kept_.erase(found);
    } else {
      store_.save(key_, lock);
    }
  }

  /// The request was refused: there is no response.
  void forget() { is_id_known_ = false; }

  /// Raised when the client cancels it.
  std::shared_ptr<const wake_signal> cancelled() const { return cancel_; }

  /// Takes the finished response. One that was deleted meanwhile stays so.
  void keep(const json& response) {
    std::unique_lock<std::mutex> lock(store_.mutex_);
    const auto found = store_.kept_.find(key_);
    ended_ = true;
    if (found == store_.kept_.end()) return;
    found->second->response = response;
    found->second->bytes += memory_of(response);
    found->second->cancel.reset();
    store_.save(key_, lock);
  }

 private:
  response_store& store_;
  client_and_id key_;
  std::shared_ptr<const wake_signal> cancel_;
  bool is_id_known_;
  bool ended_ = false;
};

/// An input item as it can be listed and referred to: with a type, an id, and content in parts.
inline json make_kept_item(json item) {
  if (!item.is_object()) return item;
  if (string_of(item, "type").empty() && item.contains("role")) item["type"] = "message";
  if (string_of(item, "type") == "message" && member_of(item, "content").is_string()) {
    const bool own = string_of(item, "role") == "assistant";
    item["content"] = json::array(
        {json::object({{"type", own ? "output_text" : "input_text"}, {"text", item["content"]}})});
  }
  const auto type = string_of(item, "type");
  const bool call = type.find("_call") != std::string::npos;
  if (string_of(item, "id").empty()) item["id"] = text::random_id(call ? "fc_" : "msg_", 24);
  return item;
}

inline std::shared_ptr<response_store::running> response_store::begin(const std::string& client,
                                                                      const json& body,
                                                                      json response) {
  const auto id = string_of(response, "id");
  const auto under_way =
      std::make_shared<running>(*this, client_and_id{client, id}, boolean_of(body, "stream"));
  auto fresh = std::make_shared<kept_response>();
  const auto& input = member_of(body, "input");
  if (input.is_string()) {
    fresh->input.push_back(make_kept_item(json::object({{"role", "user"}, {"content", input}})));
  } else if (input.is_array()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& item : resolve(client, input)) {
      fresh->input.push_back(make_kept_item(std::move(item)));
    }
  }
  fresh->response = std::move(response);
  fresh->previous = string_of(body, "previous_response_id");
  fresh->since = clock::now();
  fresh->cancel = under_way->cancelled();
  fresh->bytes = memory_of(fresh->input);
  const std::lock_guard<std::mutex> lock(mutex_);
  kept_[{client, id}] = std::move(fresh);
  return under_way;
}

/// A page of a response's input items: at most `limit`, after the item with an id. Empty parameters
/// are not given.
inline json render_items(const json& items, bool newest_first, const std::string& limit,
                         const std::string& after) {
  const auto most =
      limit.empty() ? std::optional<std::size_t>(20) : text::try_number<std::size_t>(limit);
  if (!most || *most < 1 || *most > 100) throw bad_field("limit", "must be from 1 to 100");
  json ordered = items;
  if (newest_first) std::reverse(ordered.begin(), ordered.end());
  auto next = ordered.begin();
  if (!after.empty()) {
    next = std::find_if(ordered.begin(), ordered.end(),
                        [&](const json& item) { return string_of(item, "id") == after; });
    if (next == ordered.end()) throw bad_field("after", "names no item of this response");
    ++next;
  }
  json rows = json::array();
  for (; next != ordered.end() && rows.size() < *most; ++next) rows.push_back(*next);
  return json::object({{"object", "list"},
                       {"data", rows},
                       {"first_id", rows.empty() ? json() : member_of(rows.front(), "id")},
                       {"last_id", rows.empty() ? json() : member_of(rows.back(), "id")},
                       {"has_more", next != ordered.end()}});
}

//================================================================================================
// [24] engine - one answer: sessions, processes, a deadline, a client who may leave
// uses: errors, options, json_access, conversation, fields, events, anthropic_messages, catalog,
//       cli_command, process, claude_process, pool, sessions | thread-safe
//================================================================================================

/// What a client without a system prompt gets, in place of Claude Code's persona.
constexpr std::string_view neutral_system_prompt = "You are a helpful assistant.";

/// A client that sends replies keeps the history itself: what it sends is the whole conversation,
/// also where it cut or changed it. One that relies on its session sends only what the user says.
inline bool holds_replies(const std::vector<message>& messages) {
  return std::any_of(messages.begin(), messages.end(),
                     [](const message& entry) { return entry.author == role::assistant; });
}

/// What the client will send back as the assistant's message.
inline message make_reply(const turn_result& result) {
  message entry{role::assistant, {}};
  std::string words;
  std::vector<content_part> calls;
  for (const auto& block : result.blocks) {
    const bool sealed = block.kind == block_kind::search || block.kind == block_kind::found ||
                        !block.citations.empty();
    if (sealed) {  // by the API, which gets it back as it is
      if (!words.empty()) entry.parts.emplace_back(text_part{std::exchange(words, {})});
      entry.parts.emplace_back(api_block_part{anthropic_messages::render_block(block)});
    } else if (block.kind == block_kind::text) {
      words += block.text;
    }
    if (block.kind == block_kind::thinking && !block.signature.empty()) {
      entry.parts.emplace_back(thinking_part{block.text, block.signature, {}});
    }
    if (block.kind == block_kind::redacted_thinking) {
      entry.parts.emplace_back(thinking_part{{}, {}, block.text});
    }
    if (block.kind != block_kind::tool_call) continue;
    const json input = try_parse_json(block.text);
    if (input.is_object()) calls.emplace_back(tool_call_part{block.id, block.name, input});
  }
  const bool cut = !result.blocks.empty() && result.blocks.back().kind == block_kind::search;
  if (cut) entry.parts.pop_back();  // the API takes none without its result
  if (!words.empty()) entry.parts.emplace_back(text_part{words});
  std::move(calls.begin(), calls.end(), std::back_inserter(entry.parts));
  return entry;
}

/// The API refuses tool calls in a history unless it gets the tools. A client that no longer
/// offers them gets stand-ins that the model may not call.
inline void define_called_tools(turn_request& request) {
  if (!request.tools.empty() || !request.web.empty()) return;
  std::set<std::string_view> defined;
  for (const auto& entry : request.messages) {
    for (const auto& part : entry.parts) {
      const auto* call = std::get_if<tool_call_part>(&part);
      if (!call || !defined.insert(call->name).second) continue;
      request.tools.push_back({call->name, {}, json::object({{"type", "object"}})});
    }
  }
  if (!request.tools.empty()) request.choice.kind = tool_choice::how::none;
}

/// True when a process can take the result by MCP as it is: images by their bytes only, and no more
/// text than the CLI passes on. Of a failure it passes on the text alone, 10,000 characters of it.
inline bool fits_mcp(const tool_result_part& result) {
  constexpr std::size_t max_failure = 10'000;
  std::size_t bytes = 0;
  for (const auto& piece : result.content) {
    if (const auto* plain = std::get_if<text_part>(&piece)) bytes += plain->text.size();
    const auto* media = std::get_if<media_part>(&piece);
    const bool image = media && media->kind == media_part::media_kind::image && media->url.empty();
    if (media && (!image || result.is_error)) return false;
  }
  return bytes < (result.is_error ? max_failure : max_tool_result);
}

/// All that a request adds to its history are results for a process that waits for them.
inline bool answers_calls(const turn_request& request) {
  const auto& parts = request.messages.back().parts;
  return !parts.empty() && std::all_of(parts.begin(), parts.end(), [](const content_part& part) {
    const auto* result = std::get_if<tool_result_part>(&part);
    return result && fits_mcp(*result);
  });
}

/// A model that thinks goes on after a tool call only if the API is shown the thoughts that led to
/// it, and most clients do not bring them back.
inline bool lacks_thoughts(const turn_request& request) {
  const auto& messages = request.messages;
  if (messages.size() < 2) return false;
  const auto& results = messages.back().parts;
  if (results.empty() || !std::holds_alternative<tool_result_part>(results.front())) return false;
  const auto& last_parts = messages[messages.size() - 2].parts;
  return last_parts.empty() || !std::holds_alternative<thinking_part>(last_parts.front());
}

/// The operator's other account answers, see `options::fallback`.
inline void use_fallback(turn_request& request, const options& settings) {
  request.on_fallback = true;
  if (!settings.fallback_model.empty()) request.model = settings.fallback_model;
  apply_model_limits(request, request.fallback_traits);
  refuse_ignored(request);
}

/// What the plan's limits that are known do to a request: the other account answers, which is
/// true, or extra usage is refused by a throw.
inline bool apply_plan(turn_request& request, const limit_board& limits, const options& settings) {
  if (request.on_fallback) return false;
  const auto spent = limits.find_spent(request.model, request.extra_usage);
  if (spent && settings.fallback) {
    use_fallback(request, settings);
    return true;
  }
  if (!spent || !spent->extra_usage) return false;
  const auto left = time_to_reset(*spent);
  const auto until = spent->resets_at > 0 ? " for another " + std::to_string(left.count()) + " s"
                                          : std::string(", claude does not say until when");
  api_error error(error_kind::rate_limited,
                  "the plan's limit " + spent->name + " is used up" + until +
                      ", and this proxy takes no extra usage (--no-extra-usage)",
                  "extra_usage_refused");
  error.retry_after = left;
  error.retry_is_futile = true;
  throw error;
}

/// How an answer came about; for figures and the log.
struct turn_facts {
  process_origin origin = process_origin::none;
  std::size_t rewound = 0;              ///< the user's messages that were taken back for it
  std::size_t replayed = 0;             ///< messages of the history that the process got
  std::chrono::milliseconds queued{0};  ///< the wait for a process
  int retries = 0;                      ///< of the CLI at the API
  bool on_fallback = false;             ///< see `options::fallback`
  std::string model;                    ///< that was asked for in the end; empty: none yet
  std::chrono::seconds refused_for{0};  ///< the plan has refused it, and will for so long
};

/// One turn under way. It is pulled: the caller that wants its next event lends the thread that
/// moves the process's bytes, so that a slow client slows the process.
class turn {
 public:
  turn(pool& processes, session_store& sessions, turn_request request, const options& settings)
      : pool_(processes), settings_(settings), request_(std::move(request)) {
    if (request_.session.empty()) return;
    const auto usual = likely_usage();
    session_.emplace(sessions, request_.client, request_.session, usual.prompt() + usual.output);
  }

  /// The next event that is known. After one that ends the turn there is none.
  std::optional<event> try_next() {
    while (!ended()) {
      auto known = known_event();
      if (!known) return std::nullopt;
      if (begins_again(*known)) continue;
      note(*known);
      return known;
    }
    return std::nullopt;
  }

  bool ended() const { return state_ == state::done; }

  const turn_facts& facts() const { return facts_; }

  /// What it may use in all, roughly, before it has begun.
  budget likely_use() const {
    auto likely = likely_usage();
    const bool adds_history = session_ && !holds_replies(request_.messages);
    if (adds_history) likely.input += session_->history_tokens();
    auto usd = estimate_cost(request_.model, likely);
    if (settings_.fallback && !settings_.fallback_model.empty()) {
      usd = std::max(usd, estimate_cost(settings_.fallback_model, likely));
    }
    return {1, likely.input + likely.output, usd};
  }

  /// What it has used so far, whether it has ended or not. One that is given up after the API was
  /// asked is charged for what that writes until it notices, and where it has reported nothing yet
  /// for an estimate of the input, rather too high.
  token_usage usage() const {
    if (!lease_) return usage_;
    auto used = lease_->process().usage();
    if (lease_->process().now() != claude_process::state::answering) return used;
    token_usage unseen;
    unseen.output = 64;  // half a second's
    if (used.prompt() == 0) unseen.input = anthropic_messages::estimate_tokens(request_) * 4 / 3;
    used.input += unseen.input;
    used.charge_usd += estimate_cost(request_.model, unseen);
    return used;
  }

  /// The fields that are not honoured; all are known at the first event.
  const std::vector<std::string>& ignored_params() const { return request_.ignored_params; }

  /// Moves the bytes that can be moved without waiting.
  void pump() {
    if (lease_) lease_->process().pump();
  }

  /// What poll(2) has to watch for the next event, or for a place.
  void add_poll_entries(std::vector<pollfd>& entries) const {
    switch (state_) {
      case state::waiting_for_session: return entries.push_back({session_->fd(), POLLIN, 0});
      case state::queued: return entries.push_back({ticket_->fd(), POLLIN, 0});
      case state::running: return lease_->process().add_poll_entries(entries);
      case state::done: return;
    }
  }

 private:
  enum class state { waiting_for_session, queued, running, done };

  /// Of the request alone, without the history that a session adds.
  token_usage likely_usage() const {
    constexpr std::int64_t usual_output = 4'000;
    constexpr std::int64_t max_output = 128'000;  // of any model
    token_usage likely;
    likely.input = anthropic_messages::estimate_tokens(request_);
    likely.output = std::min(request_.sampling.max_tokens.value_or(usual_output), max_output);
    return likely;
  }

  std::optional<event> known_event() {
    try {
      return advance();
    } catch (const api_error& failure) {
      return turn_failed{failure};
    } catch (const std::exception& fault) {  // no descriptor left, for one
      return turn_failed{api_error(error_kind::internal, fault.what())};
    }
  }

  /// Goes from the session's queue to the pool's and on to a process, as far as it can.
  std::optional<event> advance() {
    switch (state_) {
      case state::waiting_for_session:
        if (session_ && !session_->try_enter()) return std::nullopt;
        compose();
        queue(false);
        [[fallthrough]];
      case state::queued:
        if (!take_place()) return std::nullopt;
        [[fallthrough]];
      case state::running: return lease_->process().pop();
      case state::done: break;
    }
    return std::nullopt;
  }

  /// False while there is no process for it.
  bool take_place() {
    auto taken = ticket_->try_take();
    if (!taken) return false;
    if (apply_plan(request_, pool_.programs().limits(),
                   settings_)) {  // as was learned while it waited
      taken.reset();
      queue_again(false);
      return take_place();
    }
    begin(std::move(*taken));
    return true;
  }

  void queue(bool fresh) {
    ticket_.emplace(pool_, process_demand{{request_.model, request_.agent, request_.on_fallback},
                                          request_.client,
                                          &trace_,
                                          answers_calls(request_),
                                          fresh,
                                          queued_since_});
    state_ = state::queued;
  }

  void begin(lease taken) {
    ticket_.reset();
    lease_.emplace(std::move(taken));
    state_ = state::running;
    const auto& how = lease_->taken();
    facts_.origin = how.origin;
    const bool started_for_this = lease_->process().started() >= queued_since_;
    if (how.origin == process_origin::spare && started_for_this)
      facts_.origin = process_origin::started;
    facts_.rewound = how.rewound;
    facts_.replayed = how.replayed;
    facts_.on_fallback = request_.on_fallback;
    facts_.model = request_.model;
    facts_.queued = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - queued_since_);
    if (how.replayed > 0 && lacks_thoughts(request_)) drop_thinking();
    lease_->process().begin(request_, std::move(trace_), how.keep);
  }

  void drop_thinking() {
    if (request_.thinking_tokens.value_or(0) == 0) return;
    request_.thinking_tokens.reset();
    name_ignored(request_, request_.thinking_field);
    refuse_ignored(request_);
  }

  /// Puts the session's history before what is new, and settles what the client left open.
  void compose() {
    if (session_) {
      if (request_.system.empty()) request_.system = session_->system();
      if (!holds_replies(request_.messages)) {
        auto history = session_->history();
        if (request_.web.empty()) drop_searches(history);
        request_.messages.insert(request_.messages.begin(), history.begin(), history.end());
        normalize(request_.messages);
      }
    }
    match_tool_calls(request_.messages, request_.messages_field);
    define_called_tools(request_);
    given_system_ = request_.system;
    if (request_.model.empty()) request_.model = settings_.default_model;
    if (request_.system.empty() && !request_.agent) request_.system = neutral_system_prompt;
    trace_ = make_trace(request_);
    queued_since_ = std::chrono::steady_clock::now();
  }

  /// True when another process takes the request. One that finds no place has failed.
  bool begins_again(event& what) {
    const auto* failed = std::get_if<turn_failed>(&what);
    if (!failed || !silent_ || !lease_) return false;
    try {
      return try_again(failed->error) || fall_back(failed->error);
    } catch (const api_error& failure) {
      what = turn_failed{failure};
      return false;
    }
  }

  /// A reused process may fail before it reads the request: retries once with an empty one. A
  /// program that does not work may have several, and another takes its place.
  bool try_again(const api_error& error) {
    if (!lease_->process().failed_before_first_event()) return false;
    const bool replaced = pool_.programs().reject(lease_->process().program(), error.message);
    if (!replaced && (retried_ || facts_.origin == process_origin::started)) return false;
    if (!replaced) retried_ = true;
    queue_again(true);
    return true;
  }

  /// The plan is used up: the operator's other account answers. Nothing of an answer was sent, and
  /// the plan's process keeps the conversation before this request.
  bool fall_back(const api_error& error) {
    if (error.kind != error_kind::rate_limited || request_.on_fallback) return false;
    const bool by_plan = lease_->process().refused_by_plan() ||
                         pool_.programs().limits().find_spent(request_.model, true).has_value();
    if (!by_plan || !settings_.fallback) return false;
    use_fallback(request_, settings_);
    queue_again(false);
    return true;
  }

  void queue_again(bool fresh) {
    lease_.reset();
    trace_ = make_trace(request_);
    queue(fresh);
  }

  /// Remembers the answer, and at its end lets session and process go on with it. A turn that
  /// cannot be stored has failed.
  void note(event& what) {
    silent_ = false;
    const auto* failed = std::get_if<turn_failed>(&what);
    if (lease_) {
      facts_.retries = lease_->process().retries();
      if (failed && failed->error.kind == error_kind::rate_limited) note_refusal();
    }
    if (!failed) answer_.add(what);
    if (!ends_turn(what)) return;
    try {
      if (!failed) commit();
    } catch (const api_error& failure) {
      what = turn_failed{failure};
    }
    end();
  }

  /// Where the other account would answer at once, it is worth a try.
  void note_refusal() {
    const auto limit = pool_.programs().limits().find_spent(request_.model, true);
    if (limit && !settings_.fallback) facts_.refused_for = time_to_reset(*limit);
  }

  void commit() {
    auto reply = make_reply(answer_.result());
    if (lease_->process().was_cut()) pump();  // what it has begun by itself is charged, too
    lease_->process().accept(reply);
    if (!session_) return;
    request_.messages.push_back(std::move(reply));
    session_->commit(given_system_, std::move(request_.messages));
  }

  void end() {
    state_ = state::done;
    if (lease_) usage_ = lease_->process().usage();
    lease_.reset();
    ticket_.reset();
    session_.reset();
  }

  pool& pool_;
  const options& settings_;
  turn_request request_;
  std::string given_system_;  ///< the client's own, for the session
  conversation_trace trace_;
  state state_ = state::waiting_for_session;
  std::optional<session_store::session_lock> session_;
  std::optional<pool::ticket> ticket_;
  std::optional<lease> lease_;  ///< of a process that reads the request
  steady_time queued_since_{};
  turn_facts facts_;
  token_usage usage_;
  collector answer_;
  bool silent_ = true;  ///< the client has seen nothing of the answer
  bool retried_ = false;
};

/// The answer to one request: a turn for each choice, all under way at once, with one deadline and
/// one client, who may leave at any time. One thread.
class answer {
 public:
  /// `client_half_closed`, reported again and again: the client sends no more, so that it may have
  /// left. If it has, the next that is written to it ends it.
  enum class pulled { arrived, silence, client_half_closed, client_left };

  /// One event of one choice.
  struct choice_event {
    std::size_t choice = 0;
    event what;
  };

  /// `cancelled` ends it when it is raised; null for none.
  answer(std::vector<std::unique_ptr<turn>> turns, std::chrono::milliseconds timeout, int client_fd,
         std::shared_ptr<const wake_signal> cancelled, const wake_signal* cut)
      : turns_(std::move(turns)),
        timeout_(timeout),
        deadline_(std::chrono::steady_clock::now() + timeout),
        client_fd_(client_fd),
        cancelled_(std::move(cancelled)),
        cut_(cut) {}

  /// Waits for the next event until `until`. Once the answer has ended there is none.
  pulled next(choice_event& out, steady_time until) {
    const auto stop_at = std::min(until, deadline_);
    for (;;) {
      if (take_known(out)) return pulled::arrived;
      const auto now = std::chrono::steady_clock::now();
      if (now >= deadline_) {
        out = fail(api_error(error_kind::timed_out, "no complete answer within " +
                                                        std::to_string(timeout_.count()) +
                                                        " ms (see --timeout)"));
        return pulled::arrived;
      }
      if (cut_ != nullptr && cut_->is_raised()) {
        out = fail(api_error(error_kind::unavailable, "the proxy is shutting down"));
        return pulled::arrived;
      }
      if (cancelled_ && cancelled_->is_raised()) {
        out = fail(api_error(error_kind::invalid_request, "the answer was cancelled", "cancelled"));
        return pulled::arrived;
      }
      if (now >= stop_at) return pulled::silence;
      if (const auto client = wait(stop_at)) return *client;
      for (const auto& one : turns_) one->pump();
    }
  }

  std::size_t choices() const { return turns_.size(); }

  /// When the answer times out and gives its processes back.
  steady_time deadline() const { return deadline_; }

  const std::vector<std::string>& ignored_params() const {
    return turns_.front()->ignored_params();
  }

  /// Of the first choice, with what the others add to it.
  turn_facts facts() const {
    auto sum = turns_.front()->facts();
    for (std::size_t i = 1; i < turns_.size(); ++i) {
      const auto& more = turns_[i]->facts();
      sum.retries += more.retries;
      sum.rewound += more.rewound;
      sum.replayed += more.replayed;
      sum.on_fallback = sum.on_fallback || more.on_fallback;
      sum.refused_for = std::max(sum.refused_for, more.refused_for);
    }
    return sum;
  }

  /// What all its choices may use, roughly, before they have begun.
  budget likely_use() const {
    budget sum;
    for (const auto& one : turns_) sum.add(one->likely_use());
    return sum;
  }

  /// What all its choices have used so far, with what their processes wrote and nobody pulled.
  token_usage usage() {
    token_usage sum;
    for (const auto& one : turns_) {
      if (!one->ended()) one->pump();
      add_usage(sum, one->usage());
    }
    return sum;
  }

  /// True when all its turns have ended, or one has failed: there is no half answer.
  bool ended() const {
    return failed_ ||
           std::all_of(turns_.begin(), turns_.end(), [](const auto& one) { return one->ended(); });
  }

 private:
  /// Longest wait in one go: a process whose pipes a grandchild holds open ends without a sign.
  static constexpr std::chrono::milliseconds max_single_wait{100};

  choice_event fail(api_error error) {
    failed_ = true;
    return {0, turn_failed{std::move(error)}};
  }

  bool take_known(choice_event& out) {
    for (std::size_t i = 0; i < turns_.size(); ++i) {
      auto known = turns_[i]->try_next();
      if (!known) continue;
      failed_ = failed_ || std::holds_alternative<turn_failed>(*known);
      out = {i, std::move(*known)};
      return true;
    }
    return false;
  }

  /// Waits for bytes, or for a place. Tells what the client has done meanwhile, if anything.
  std::optional<pulled> wait(steady_time until) {
    entries_.clear();
    for (const auto& one : turns_) one->add_poll_entries(entries_);
    if (cancelled_) entries_.push_back({cancelled_->fd(), POLLIN, 0});
    if (cut_ != nullptr) entries_.push_back({cut_->fd(), POLLIN, 0});
#ifdef POLLRDHUP
    constexpr short shut = POLLRDHUP;
#else
    constexpr short shut = 0;
#endif
    const auto now = std::chrono::steady_clock::now();
    entries_.push_back(
        {client_fd_, static_cast<short>(now < next_half_close_check_ ? 0 : shut), 0});
    const auto latest = std::chrono::steady_clock::now() + max_single_wait;
    ::poll(entries_.data(), static_cast<nfds_t>(entries_.size()),
           poll_timeout(std::min(until, latest)));
    const auto seen = entries_.back().revents;
    if ((seen & (POLLHUP | POLLERR | POLLNVAL)) != 0) return pulled::client_left;
    if ((seen & shut) == 0) return std::nullopt;
    next_half_close_check_ = now + std::chrono::seconds(1);
    return pulled::client_half_closed;
  }

  std::vector<std::unique_ptr<turn>> turns_;
  std::chrono::milliseconds timeout_;
  steady_time deadline_;
  int client_fd_;
  steady_time next_half_close_check_{};  ///< whether a client is still there that has shut its end
  std::shared_ptr<const wake_signal> cancelled_;
  const wake_signal* cut_;
  bool failed_ = false;
  std::vector<pollfd> entries_;
};

/// Turns requests into answers.
class engine {
 public:
  /// `cut` ends all answers when it is raised; null for none.
  engine(const options& settings, pool& processes, session_store& sessions,
         const wake_signal* cut = nullptr)
      : settings_(settings), pool_(processes), sessions_(sessions), cut_(cut) {}

  /// Nothing can fail before the answer is pulled. `client_fd` is the client's socket, watched for
  /// its end; -1 for none.
  std::unique_ptr<answer> start(std::vector<turn_request> requests, int client_fd,
                                std::shared_ptr<const wake_signal> cancelled = nullptr) {
    std::vector<std::unique_ptr<turn>> turns;
    for (auto& request : requests) {
      turns.push_back(std::make_unique<turn>(pool_, sessions_, std::move(request), settings_));
    }
    return std::make_unique<answer>(std::move(turns), settings_.timeout, client_fd,
                                    std::move(cancelled), cut_);
  }

 private:
  const options& settings_;
  pool& pool_;
  session_store& sessions_;
  const wake_signal* cut_;
};

//================================================================================================
// [25] agents - what Claude Code's own tools may do, and which MCP servers they have
// uses: text, errors, json_access, options, conversation, fields, cli_protocol, cli_command,
//       process, store | thread-safe
//================================================================================================

/// One of Claude Code's own tools.
struct known_tool {
  std::string_view name;
  std::string_view category;
  std::string_view description;
  std::string_view parameters;  ///< names, with commas
  bool reads_only = false;      ///< it changes nothing, and tells nobody else
};

/// Those that a client may ask for by name, in the order and categories of the reference wrapper.
constexpr std::array<known_tool, 15> known_tools = {{
    {"Task", "agent", "Hands a task to an agent of its own", "description, prompt, subagent_type"},
    {"Bash", "system", "Runs a shell command", "command, timeout"},
    {"Glob", "file", "Finds files by a pattern of their names", "pattern, path", true},
    {"Grep", "file", "Finds text in files by a regular expression", "pattern, path, glob", true},
    {"Read", "file", "Reads a file", "file_path, offset, limit", true},
    {"Edit", "file", "Replaces text in a file", "file_path, old_string, new_string"},
    {"Write", "file", "Writes a file", "file_path, content"},
    {"NotebookEdit", "file", "Changes a cell of a notebook", "notebook_path, new_source, cell_id"},
    {"WebFetch", "web", "Reads a page of the web", "url, prompt"},
    {"TodoWrite", "productivity", "Keeps a list of what is to be done", "todos", true},
    {"WebSearch", "web", "Searches the web", "query, allowed_domains, blocked_domains"},
    {"BashOutput", "system", "Reads what a command in the background has printed", "bash_id", true},
    {"KillShell", "system", "Ends a command in the background", "shell_id"},
    {"Skill", "productivity", "Follows a skill's instructions", "skill"},
    {"SlashCommand", "productivity", "Runs a command of Claude Code's", "command"},
}};

inline bool is_known_tool(std::string_view name) {
  return std::any_of(known_tools.begin(), known_tools.end(),
                     [&](const known_tool& tool) { return tool.name == name; });
}

/// What a client asks of its agent by headers; their names are the reference wrapper's.
struct agent_headers {
  std::optional<std::string> max_turns;
  std::optional<std::string> allowed_tools;
  std::optional<std::string> disallowed_tools;
  std::optional<std::string> permission_mode;
  std::optional<std::string> directory;
};

/// Which tools the agents of a client, or of one of its sessions, have.
struct tool_configuration {
  std::vector<std::string> allowed;
  std::vector<std::string> disallowed;
  std::chrono::system_clock::time_point created;
  std::chrono::system_clock::time_point updated;
  steady_time used;               ///< by a request, or set
  std::vector<std::string> lent;  ///< of `effective` what the operator lends; to be shown

  std::vector<std::string> effective() const {
    auto tools = allowed;
    const auto out = [&](const std::string& name) {
      return std::find(disallowed.begin(), disallowed.end(), name) != disallowed.end();
    };
    tools.erase(std::remove_if(tools.begin(), tools.end(), out), tools.end());
    std::sort(tools.begin(), tools.end());
    return tools;
  }
};

/// An MCP server that agents may use.
struct mcp_server {
  std::string name;
  std::string description;
  json config;  ///< in Claude Code's own form: `{command, args, env}` or `{type, url, …}`
  bool operators = false;  ///< from `options::mcp_config`; its command line is not shown
  bool enabled = true;     ///< agents are given it
  bool connected = false;  ///< it was tried, and has answered
  std::size_t tools = 0;   ///< the counts that it reported then
  std::size_t resources = 0;
  std::size_t prompts = 0;
};

/// The list of `GET /v1/tools`, in the reference wrapper's shape.
inline json render_known_tools() {
  json rows = json::array();
  for (const auto& tool : known_tools) {
    json parameters = json::object();
    for (const auto& name : text::split(tool.parameters, ',')) parameters[name] = name;
    rows.push_back(json::object({{"name", tool.name},
                                 {"description", tool.description},
                                 {"category", tool.category},
                                 {"parameters", parameters},
                                 {"examples", json::array()},
                                 {"is_safe", tool.reads_only},
                                 {"requires_network", tool.category == "web"}}));
  }
  return json::object({{"tools", rows}, {"total", known_tools.size()}});
}

inline json render_configuration(const tool_configuration& kept) {
  return json::object({{"allowed_tools", kept.allowed},
                       {"disallowed_tools", kept.disallowed},
                       {"effective_tools", kept.lent},
                       {"created_at", text::iso_time(kept.created)},
                       {"updated_at", text::iso_time(kept.updated)}});
}

/// For the store.
inline json encode_configuration(const tool_configuration& kept) {
  return json::object({{"allowed", text::join(kept.allowed, ",")},
                       {"disallowed", text::join(kept.disallowed, ",")},
                       {"created_ms", to_ms(kept.created)},
                       {"updated_ms", to_ms(kept.updated)}});
}

inline tool_configuration decode_configuration(const json& stored) {
  const auto names = [&](const char* list) { return text::split(string_of(stored, list), ','); };
  return {names("allowed"),
          names("disallowed"),
          past_time(stored, "created_ms"),
          past_time(stored, "updated_ms"),
          std::chrono::steady_clock::now(),
          {}};
}

inline json render_tool_stats(const tool_configuration& kept, std::size_t sessions) {
  std::map<std::string_view, int> categories;
  for (const auto& tool : known_tools) ++categories[tool.category];
  json counted = json::object();
  for (const auto* name : {"file", "system", "web", "productivity", "agent"}) {
    counted[name] = categories[name];
  }
  return json::object({{"total_tools", known_tools.size()},
                       {"global_allowed", kept.allowed.size()},
                       {"global_disallowed", kept.disallowed.size()},
                       {"session_configs", sessions},
                       {"tool_categories", counted}});
}

/// An array of names; nullopt when the field is absent.
inline std::optional<std::vector<std::string>> parse_names(const std::optional<reader>& field) {
  if (!field) return std::nullopt;
  std::vector<std::string> names;
  for (const auto& element : field->elements()) names.push_back(element.string());
  return names;
}

/// A name that a shell can export.
inline bool is_variable_name(std::string_view name) {
  return !name.empty() && std::isdigit(static_cast<unsigned char>(name.front())) == 0 &&
         text::is_alphanumeric(name, "_");
}

/// `{name, command, args, env, description, enabled}`, as the reference wrapper takes it.
inline mcp_server parse_mcp_server(const reader& root) {
  const auto name = root.require("name");
  mcp_server server;
  server.name = name.string();
  if (server.name.empty() || server.name.size() > 100 ||
      server.name.find("__") != std::string::npos || !text::is_alphanumeric(server.name.front()) ||
      !text::is_alphanumeric(server.name, "-_.")) {
    name.fail(
        "must be 1 to 100 letters, digits, '-', '_' or '.', the first a letter or digit, without "
        "'__'");
  }
  const auto command = root.require("command");
  if (text::trim(command.string()).empty() || command.string().size() > 500) {
    command.fail("must be 1 to 500 characters long");
  }
  const auto arguments = parse_names(root.find("args")).value_or(std::vector<std::string>());
  server.config = json::object({{"command", command.string()}, {"args", arguments}});
  if (const auto variables = root.find("env")) {
    if (!variables->value().is_object()) variables->fail("must be an object");
    for (const auto& [key, value] : variables->value().items()) {
      const reader variable(value, "env." + key);
      if (!is_variable_name(key)) variable.fail("must be named by letters, digits and '_'");
      server.config["env"][key] = variable.string();
    }
  }
  if (const auto description = root.find("description")) server.description = description->string();
  if (const auto enabled = root.find("enabled")) server.enabled = enabled->boolean();
  return server;
}

/// Without the variables, and of the operator's without the command line: they may hold secrets.
inline json render_mcp_servers(const std::vector<mcp_server>& servers) {
  json rows = json::array();
  for (const auto& server : servers) {
    const json shown = server.operators ? json::object() : server.config;
    const auto& arguments = member_of(shown, "args");
    rows.push_back(json::object({{"name", server.name},
                                 {"command", string_of(shown, "command")},
                                 {"args", arguments.is_array() ? arguments : json::array()},
                                 {"description", server.description},
                                 {"enabled", server.enabled},
                                 {"connected", server.connected},
                                 {"tools_count", server.tools},
                                 {"resources_count", server.resources},
                                 {"prompts_count", server.prompts}}));
  }
  return json::object({{"servers", rows}, {"total", servers.size()}});
}

inline json render_mcp_stats(const std::vector<mcp_server>& servers) {
  json rows = json::array();
  std::size_t connected = 0;
  mcp_server sums;
  for (const auto& server : servers) {
    connected += server.connected ? 1 : 0;
    sums.tools += server.tools;
    sums.resources += server.resources;
    sums.prompts += server.prompts;
    rows.push_back(json::object({{"name", server.name},
                                 {"enabled", server.enabled},
                                 {"connected", server.connected},
                                 {"description", server.description}}));
  }
  return json::object({{"mcp_available", true},
                       {"registered_servers", servers.size()},
                       {"connected_servers", connected},
                       {"total_tools", sums.tools},
                       {"total_resources", sums.resources},
                       {"total_prompts", sums.prompts},
                       {"servers", rows}});
}

/// Asks a stdio MCP server for what it has (https://modelcontextprotocol.io/specification). Throws
/// `api_error` when it does not answer in time.
class mcp_probe {
 public:
  mcp_probe(const command& what, const child_guard& guard) : child_(what, guard) {}

  void count(mcp_server& server, const wake_signal& stop) {
    const json client =
        json::object({{"name", "claude-openai"}, {"version", CLAUDE_OPENAI_VERSION}});
    const auto hello = ask("initialize",
                           json::object({{"protocolVersion", "2025-06-18"},
                                         {"capabilities", json::object()},
                                         {"clientInfo", client}}),
                           stop);
    if (!hello.is_object()) {
      throw api_error(error_kind::bad_gateway, "the MCP server refuses 'initialize'");
    }
    tell(json::object({{"jsonrpc", "2.0"}, {"method", "notifications/initialized"}}));
    const auto& offers = member_of(hello, "capabilities");
    const auto count_of = [&](const char* kind) -> std::size_t {
      if (!member_of(offers, kind).is_object()) return 0;
      return member_of(ask(std::string(kind) + "/list", json::object(), stop), kind).size();
    };
    server.tools = count_of("tools");
    server.resources = count_of("resources");
    server.prompts = count_of("prompts");
  }

 private:
  static constexpr std::chrono::seconds patience{15};

  void tell(const json& message) {
    outgoing_.add(dump(message) + "\n");
    outgoing_.flush(child_.input.get());
  }

  json ask(const std::string& method, const json& params, const wake_signal& stop) {
    const auto id = ++last_id_;
    tell(json::object({{"jsonrpc", "2.0"}, {"id", id}, {"method", method}, {"params", params}}));
    while (std::chrono::steady_clock::now() < deadline_ && !stop.is_raised()) {
      while (const auto text = lines_.next()) {
        const json line = try_parse_json(*text, max_line_depth);
        const bool question = !member_of(line, "method").is_null();
        if (question || integer_of(line, "id") != id) continue;
        return member_of(line, "result");  // null: it has no such method
      }
      std::array<pollfd, 2> fds{
          {{child_.output.get(), POLLIN, 0}, {child_.errors.get(), POLLIN, 0}}};
      ::poll(fds.data(), fds.size(), 50);
      outgoing_.flush(child_.input.get());
      std::string received;
      std::string ignored;
      const bool open = read_available(child_.output.get(), received);
      if (!read_available(child_.errors.get(), ignored)) child_.errors.reset();
      lines_.feed(received);
      if (lines_.overflowed()) {
        throw api_error(error_kind::bad_gateway, "the MCP server prints an endless line");
      }
      if ((!open || child_.has_exited()) && received.empty()) break;
    }
    throw api_error(error_kind::bad_gateway, "the MCP server does not answer '" + method + "'");
  }

  child_process child_;
  write_buffer outgoing_;
  line_splitter lines_{8 * 1024 * 1024};
  std::int64_t last_id_ = 0;
  steady_time deadline_ = std::chrono::steady_clock::now() + patience;
};

/// Writes `confining_script` where it is not. Throws `std::system_error`.
inline void write_confining_script(const options& settings) {
  const auto path = confining_script_path(settings);
  if (::access(path.c_str(), X_OK) == 0) return;
  const auto fresh = path + text::random_id(".", 12);
  {
    const unique_fd file(
        ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0700));
    if (!file || !write_all(file.get(), confining_script)) {
      throw std::system_error(last_system_error(), "cannot write " + fresh);
    }
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) {
    throw std::system_error(last_system_error(), "cannot write " + path);
  }
}

/// Why an agent's commands cannot be confined here; empty when they can. Runs one.
inline std::string try_sandbox(const options& settings, const child_guard& guard) {
  if (find_program("bwrap", settings.environment).empty()) {
    return "bubblewrap is not installed (on Debian: apt-get install bubblewrap)";
  }
  try {
    write_confining_script(settings);
    auto words = bubblewrap_words(false);
    words.insert(words.end(), {"bash", "-c"});
    const auto scratch = value_or(settings.environment, "TMPDIR");
    command trial{{confining_script_path(settings), "exit 0"}, settings.environment, scratch};
    trial.environment["CLAUDE_OPENAI_DIRECTORY"] = scratch;
    trial.environment["CLAUDE_OPENAI_CONFINE"] = shell_line(words);
    const auto tried = run_command(trial, guard, std::chrono::seconds(20), wake_signal());
    if (tried.ending == "exit code 0") return {};
    const auto errors = text::repair_utf8(text::trim(tried.errors));
    return errors.empty() ? "bubblewrap: " + (tried.finished ? tried.ending : "no answer in 20 s")
                          : errors;
  } catch (const std::system_error& failure) {
    return failure.what();
  }
}

/// In a line for the operator; `problem` is `try_sandbox`'s.
inline std::string describe_confinement(const options& settings, const std::string& problem) {
  if (!settings.builtin_tools) return "none are lent (--no-builtin-tools)";
  if (settings.sandbox == sandbox_use::off) return "agents are not confined (--sandbox off)";
  if (problem.empty()) {
    return std::string("agents see and change their directories alone, ") +
           (settings.sandbox_network ? "with network" : "without network");
  }
  return settings.sandbox == sandbox_use::on
             ? "refused, since --sandbox is on and cannot be: " + problem
             : "files are confined, commands are NOT: " + problem;
}

// What an agent may use: no more than the operator's `--allowed-tools` (`may_have`); of these what
// the client's header names, else the tools that its key has chosen and its servers; and nothing
// that either side denies (`apply_tools`). Confined, no rule may name a path (`leaves_directory`).
namespace agent_rules {

inline void check_names(const std::vector<std::string>& names) {
  std::vector<std::string> wrong;
  for (const auto& name : names) {
    if (!is_known_tool(name)) wrong.push_back(name);
  }
  if (wrong.empty()) return;
  std::vector<std::string> valid;
  for (const auto& tool : known_tools) valid.emplace_back(tool.name);
  throw api_error(error_kind::invalid_request, "Invalid tool names: " + text::join(wrong, ", ") +
                                                   ". Valid tools: " + text::join(valid, ", "));
}

/// Rules separated by commas; those within parentheses are part of a rule.
inline std::vector<std::string> split_rules(const char* header, std::string_view list) {
  std::vector<std::string> rules;
  while (!list.empty()) {
    auto comma = list.find(',');
    const auto open = list.find('(');
    if (open < comma) comma = list.find(',', std::min(list.find(')', open), list.size()));
    const auto end = std::min(comma, list.size());
    const auto rule = text::trim(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
    if (rule.empty()) continue;
    if (!is_rule(rule)) {
      throw bad_field(header, "holds '" + text::repair_utf8(rule) +
                                  "', which is no tool such as Bash or Bash(git:*)");
    }
    rules.emplace_back(rule);
  }
  return rules;
}

/// The rule for all tools of a server. Claude Code writes `_` for the dots in its name.
inline std::string rule_of(const mcp_server& server) {
  std::string rule = "mcp__" + server.name;
  std::replace(rule.begin(), rule.end(), '.', '_');
  return rule;
}

inline bool is_of(const std::string& rule, const mcp_server& server) {
  const auto name = tool_of_rule(rule);
  return name == rule_of(server) || text::starts_with(name, rule_of(server) + "__");
}

inline bool may_have(const options& settings, const std::string& rule,
                     const std::vector<mcp_server>& servers) {
  const auto name = tool_of_rule(rule);
  const auto& most = settings.allowed_tools;
  bool known = is_known_tool(name);
  for (const auto& server : servers) {
    if (!is_of(rule, server)) continue;
    if (server.operators) return true;
    known = true;
    if (std::find(most.begin(), most.end(), rule_of(server)) != most.end()) return true;
  }
  if (most.empty()) return known;
  return std::any_of(most.begin(), most.end(), [&](const std::string& allowed) {
    return allowed == rule || allowed == name;
  });
}

/// A rule by which a file tool would reach more than the agent's directories, and which the
/// operator has not given.
inline bool leaves_directory(const options& settings, const std::string& rule) {
  const auto name = tool_of_rule(rule);
  if (!is_file_tool(name) || name == rule) return false;
  const auto& most = settings.allowed_tools;
  if (std::find(most.begin(), most.end(), rule) != most.end()) return false;
  // `Read(*)` is all that `Read` is.
  const bool all = rule.find_first_not_of('*', name.size() + 1) == rule.size() - 1;
  const auto begin = rule.at(name.size() + 1);
  return all || begin == '/' || begin == '~' || begin == '!' ||
         rule.find("..") != std::string::npos;
}

/// Throws a 403 for `Read(!x)`, which would exempt x from the operator's deny rules.
inline void refuse_exception(const std::string& rule) {
  if (!text::starts_with(rule, tool_of_rule(rule) + "(!") || tool_of_rule(rule) == "Bash") return;
  throw api_error(error_kind::permission,
                  "the rule '" + rule + "' allows what others deny; it can only deny");
}

inline void apply_mode(const options& settings, turn_request& request, const agent_headers& asked) {
  auto& mode = request.agent->permission_mode;
  mode = "default";
  const auto most = rank_of_mode(settings.permission_mode).value_or(0);
  if (asked.permission_mode) {
    const auto rank = rank_of_mode(*asked.permission_mode);
    if (!rank) {
      throw bad_field("X-Claude-Permission-Mode",
                      "must be plan, dontAsk, default, acceptEdits or bypassPermissions");
    }
    if (*rank > most) {
      throw api_error(error_kind::permission,
                      "the permission mode '" + *asked.permission_mode +
                          "' is more than this proxy allows (--permission-mode " +
                          settings.permission_mode + ")");
    }
    mode = *asked.permission_mode;
  }
  if (rank_of_mode(mode) > most) mode = settings.permission_mode;
  const bool confined = request.agent->confined != confinement::none;
  if (mode == "bypassPermissions" && (::geteuid() == 0 || confined)) {
    mode = "acceptEdits";  // claude refuses to run as root, or restricted, without permissions
    name_ignored(request, "X-Claude-Permission-Mode");
  }
  const auto is_narrowed = [](const std::string& rule) { return text::starts_with(rule, "Bash("); };
  const auto& tools = settings.allowed_tools;
  if (mode == "acceptEdits" && std::any_of(tools.begin(), tools.end(), is_narrowed)) {
    throw api_error(error_kind::permission,
                    "the permission mode 'acceptEdits' lets commands run that no rule of this "
                    "proxy's --allowed-tools names");
  }
}

inline void deny(agent_request& agent, const char* name) {
  const auto names_it = [&](const std::string& rule) { return tool_of_rule(rule) == name; };
  if (std::any_of(agent.tools.begin(), agent.tools.end(), names_it)) {
    throw api_error(error_kind::permission,
                    std::string("the tool '") + name +
                        "' calls the model by itself, which a budget (--budget) cannot count");
  }
  agent.disallowed.emplace_back(name);
}

inline void apply_turn_limit(const options& settings, agent_request& agent,
                             const agent_headers& asked) {
  constexpr int default_turns = 10;
  const int most = settings.max_turns;
  agent.max_turns = most > 0 ? std::min(default_turns, most) : default_turns;
  if (!asked.max_turns) return;
  const auto turns = text::try_number<int>(text::trim(*asked.max_turns));
  if (!turns || *turns < 0 || *turns > 1000) {
    throw bad_field("X-Claude-Max-Turns", "must be a number from 1 to 1000, or 0 for no limit");
  }
  if (most > 0 && (*turns == 0 || *turns > most)) {
    throw api_error(error_kind::permission, "more than " + std::to_string(most) +
                                                " turns are not allowed here (--max-turns)");
  }
  agent.max_turns = *turns;
}

/// Which directory the path leads to, without a link on the way; empty where it does not.
inline std::string identify(const std::string& path) {
  const unique_fd opened(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat found {};
  if (!opened || ::fstat(opened.get(), &found) != 0 || !leads_to(opened.get(), path)) return {};
  return std::to_string(found.st_dev) + ":" + std::to_string(found.st_ino);
}

inline void identify_places(const options& settings, agent_request& agent) {
  for (const auto& directory : directories_of(settings, agent)) {
    agent.places.push_back(identify(directory));
    if (!agent.places.back().empty()) continue;
    throw api_error(error_kind::permission,
                    "an agent's directory is not there, or has become a link to another");
  }
}

inline void apply_tools(const options& settings, agent_request& agent, const agent_headers& asked,
                        const tool_configuration& configured,
                        const std::vector<mcp_server>& servers) {
  agent.disallowed = settings.disallowed_tools;
  agent.disallowed.insert(agent.disallowed.end(), configured.disallowed.begin(),
                          configured.disallowed.end());
  if (asked.disallowed_tools) {
    const auto more = split_rules("X-Claude-Disallowed-Tools", *asked.disallowed_tools);
    for (const auto& rule : more) refuse_exception(rule);
    agent.disallowed.insert(agent.disallowed.end(), more.begin(), more.end());
  }
  if (asked.allowed_tools) {
    agent.tools = split_rules("X-Claude-Allowed-Tools", *asked.allowed_tools);
    for (const auto& rule : agent.tools) {
      const bool leaves = agent.confined != confinement::none && leaves_directory(settings, rule);
      if (may_have(settings, rule, servers) && !leaves) continue;
      throw api_error(error_kind::permission,
                      "the tool '" + rule + "' is not among those that this proxy allows");
    }
  } else {
    for (const auto& tool : configured.effective()) {
      if (may_have(settings, tool, servers)) agent.tools.push_back(tool);
    }
    for (const auto& server : servers) {
      if (may_have(settings, rule_of(server), servers)) agent.tools.push_back(rule_of(server));
    }
  }
  const auto out = [&](const std::string& rule) {
    return std::find(agent.disallowed.begin(), agent.disallowed.end(), rule) !=
           agent.disallowed.end();
  };
  agent.tools.erase(std::remove_if(agent.tools.begin(), agent.tools.end(), out), agent.tools.end());
}

inline std::string command_line(const json& config) {
  auto line = shell_word(string_of(config, "command"));
  for (const auto& argument : member_of(config, "args")) {
    if (argument.is_string()) line += " " + shell_word(argument.get<std::string>());
  }
  return line;
}

/// What starts a client's server once it is confined. Its variables are set there and not before:
/// LD_PRELOAD or PATH would run the client's code outside. In the words, which are all quoted, no
/// `${` is left for the CLI to replace by a variable of its own.
inline std::string confined_line(const json& config) {
  std::string line = "unset CLAUDE_OPENAI_CONFINED\n";
  if (config.contains("env")) {
    for (const auto& [name, value] : config["env"].items()) {
      line += "export " + name + "=" + shell_word(value.get<std::string>()) + "\n";
    }
  }
  line += "exec " + command_line(config);
  for (auto at = line.find("${"); at != std::string::npos; at = line.find("${", at)) {
    line.replace(at, 2, "$''{");
  }
  return line;
}

/// Lets `confining_script` start a server. An operator's is not confined: what it does is the
/// operator's business.
inline void start_by_script(json& config, const mcp_server& server) {
  if (server.operators) {
    config["env"]["CLAUDE_OPENAI_SERVER"] = command_line(server.config);
  } else {
    config = json::object(
        {{"command", "confined"},
         {"env", json::object({{"CLAUDE_OPENAI_CONFINED", confined_line(server.config)}})}});
  }
}

inline command server_command(const options& settings, const json& config) {
  command what;
  what.arguments.push_back(string_of(config, "command"));
  for (const auto& argument : member_of(config, "args")) {
    if (argument.is_string()) what.arguments.push_back(argument.get<std::string>());
  }
  for (const auto& [name, value] : settings.environment) {
    const auto lists = [&, key = std::string_view(name)](std::string_view pattern) {
      return is_listed(key, pattern);
    };
    if (std::any_of(common_variables.begin(), common_variables.end(), lists)) {
      what.environment.emplace(name, value);
    }
  }
  const auto& variables = member_of(config, "env");
  if (variables.is_object()) {
    for (const auto& [name, value] : variables.items()) {
      if (value.is_string()) what.environment[name] = value.get<std::string>();
    }
  }
  what.working_directory = settings.working_directory;
  return what;
}

}  // namespace agent_rules

/// Knows what agents may do: the operator's limits, and within them what each client has set. A
/// client's settings are its own; a store keeps which tools it has chosen.
class agent_registry {
 public:
  /// Throws `std::invalid_argument` when the operator's MCP file cannot be used. `scratch` is a
  /// private directory, in which each client's agents get one of their own.
  agent_registry(const options& settings, std::string scratch, const child_guard& guard,
                 std::shared_ptr<state_store> state = std::make_shared<state_store>())
      : settings_(settings), scratch_(std::move(scratch)), guard_(guard), state_(std::move(state)) {
    for (const auto& record : state_->read(kind)) {
      configurations_[record.client][record.id] = decode_configuration(record.head);
    }
    if (settings_.mcp_config.empty()) return;
    const unique_fd file(::open(settings_.mcp_config.c_str(), O_RDONLY | O_CLOEXEC));
    const json parsed = try_parse_json(read_all(file));
    const auto& servers = member_of(parsed, "mcpServers");
    if (!servers.is_object()) {
      throw std::invalid_argument("--mcp-config: no MCP servers can be read from " +
                                  settings_.mcp_config);
    }
    for (const auto& [name, config] : servers.items()) {
      if (name == "client") {  // see `tool_server`
        throw std::invalid_argument("--mcp-config: an MCP server cannot be named 'client': " +
                                    settings_.mcp_config);
      }
      operator_servers_.push_back({name, "from the operator's file", config, true});
    }
  }

  /// Fills in what the agent of this request may do. Throws a 400 for what is no setting, and a 403
  /// for more than the operator allows.
  ///
  /// `has_budget`: what the client uses is limited, and so it gets no tools that call the model by
  /// themselves: of these calls the CLI does not tell all.
  void authorize(turn_request& request, const agent_headers& asked, bool has_budget = false) {
    check_lent();
    auto& agent = *request.agent;
    agent.confined = confinement_here();
    agent_rules::apply_mode(settings_, request, asked);
    agent_rules::apply_turn_limit(settings_, agent, asked);
    apply_directory(request, asked);
    agent_rules::identify_places(settings_, agent);
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<mcp_server> servers;
    for (const auto& server : servers_of(request.client)) {
      if (server.enabled) servers.push_back(server);
    }
    agent_rules::apply_tools(settings_, agent, asked,
                             configuration_of(request.client, request.session), servers);
    if (has_budget) {
      for (const char* name : {"Task", "WebFetch", "WebSearch"}) agent_rules::deny(agent, name);
    }
    json used = json::object();
    for (const auto& server : servers) {
      const auto names_it = [&](const std::string& rule) {
        return agent_rules::is_of(rule, server);
      };
      if (std::none_of(agent.tools.begin(), agent.tools.end(), names_it)) continue;
      used[server.name] = server.config;
      const bool local = !string_of(server.config, "command").empty();
      if (agent.confined == confinement::commands && local)
        agent_rules::start_by_script(used[server.name], server);
      agent.client_servers = agent.client_servers || !server.operators;
    }
    if (!used.empty()) agent.mcp_config = dump(json::object({{"mcpServers", used}}));
  }

  tool_configuration configuration(const std::string& client, const std::string& session) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return describe(configuration_of(client, session));
  }

  /// How far agents are confined. The first call may take some 20 ms. Throws a 503 where they
  /// should be and cannot.
  confinement confinement_here() {
    if (settings_.sandbox == sandbox_use::off) return confinement::none;
    const auto& problem = sandbox_problem();
    if (problem.empty()) return confinement::commands;
    if (settings_.sandbox == sandbox_use::automatic) return confinement::files;
    throw api_error(error_kind::unavailable,
                    "agents are to be confined (--sandbox on), and cannot be: " + problem);
  }

  /// See `try_sandbox`, which is called once.
  const std::string& sandbox_problem() {
    std::call_once(sandbox_tried_, [this] { sandbox_problem_ = try_sandbox(settings_, guard_); });
    return sandbox_problem_;
  }

  void expire() {
    const std::lock_guard<std::mutex> lock(mutex_);
    sweep();
  }

  void forget(const std::set<std::string>& clients) {
    state_->forget(kind, clients);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& client : clients) {
      servers_.erase(client);
      auto& own = configurations_[client];
      while (!own.empty()) forget(client, own.begin());
      configurations_.erase(client);
    }
  }

  /// What is null stays as it is. Throws a 400 for a name that no tool has.
  tool_configuration configure(const std::string& client, const std::string& session,
                               const std::optional<std::vector<std::string>>& allowed,
                               const std::optional<std::vector<std::string>>& disallowed) {
    for (const auto* names : {&allowed, &disallowed}) {
      if (*names) agent_rules::check_names(**names);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    auto fresh = configuration_of(client, {});
    fresh.created = std::chrono::system_clock::now();
    auto& own = configurations_[client];
    auto& kept = own.try_emplace(session, std::move(fresh)).first->second;
    if (allowed) kept.allowed = without_doubles(*allowed);
    if (disallowed) kept.disallowed = without_doubles(*disallowed);
    kept.updated = std::chrono::system_clock::now();
    kept.used = std::chrono::steady_clock::now();
    state_->write(kind, {client, session, encode_configuration(kept)});
    const auto configured = describe(kept);
    if (own.size() > max_configurations) {
      forget(client, std::min_element(own.begin(), own.end(), [](const auto& a, const auto& b) {
               return std::make_pair(a.first.empty(), a.second.used) <
                      std::make_pair(b.first.empty(), b.second.used);
             }));
    }
    return configured;
  }

  std::size_t session_configurations(const std::string& client) {
    const std::lock_guard<std::mutex> lock(mutex_);
    configuration_of(client, {});
    if (state_->is_shared()) return state_->list(kind, client).size();
    return configurations_[client].size() - 1;
  }

  /// The operator's and the client's own.
  std::vector<mcp_server> servers(const std::string& client) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return servers_of(client);
  }

  /// A client's server of the same name is replaced. Throws a 403 where clients may add none, or
  /// none of that name.
  void add_server(const std::string& client, mcp_server server) {
    check_lent();
    if (!settings_.allow_mcp_registration) {
      throw api_error(error_kind::permission,
                      "an MCP server is a command that runs on this machine; this proxy takes none "
                      "from clients (--allow-mcp-registration)");
    }
    server.operators = false;
    const auto rule = agent_rules::rule_of(server);
    if (!agent_rules::may_have(settings_, rule, {server})) {
      throw api_error(error_kind::permission,
                      "'" + rule + "' is not among the tools that this proxy allows");
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (rule == "mcp__client") refuse_name(server.name, "client");  // see `tool_server`
    auto& own = servers_of(client);
    auto same = own.end();
    auto bytes = size_of(server);
    for (auto known = own.begin(); known != own.end(); ++known) {
      if (agent_rules::rule_of(*known) == rule) {
        if (known->name != server.name || known->operators) refuse_name(server.name, known->name);
        same = known;
      } else if (!known->operators) {
        bytes += size_of(*known);
      }
    }
    if (bytes > max_server_bytes) {
      throw bad_field("name", "is one MCP server too many: those of a client may take 32 KiB");
    }
    if (same == own.end()) same = own.emplace(own.end());
    *same = std::move(server);
  }

  /// Starts a server to see what it has, and gives it to this client's agents from then on.
  mcp_server connect(const std::string& client, const std::string& name, const wake_signal& stop) {
    check_lent();
    auto tried = change(client, name, [](mcp_server&) {});
    if (string_of(tried.config, "command").empty()) {
      throw bad_field("server_name", "names a server that is no local command; it cannot be tried");
    }
    try {
      mcp_probe(probe_command(client, tried), guard_).count(tried, stop);
    } catch (const std::system_error& failure) {
      throw api_error(error_kind::bad_gateway, failure.what());
    }
    return change(client, name, [&](mcp_server& server) {
      if (server.config != tried.config) {
        throw api_error(error_kind::invalid_request,
                        "MCP server '" + name + "' was registered anew meanwhile; connect again");
      }
      server.connected = server.enabled = true;
      server.tools = tried.tools;
      server.resources = tried.resources;
      server.prompts = tried.prompts;
    });
  }

  /// This client's agents no longer get the server. Throws a 404 when it was not connected.
  void disconnect(const std::string& client, const std::string& name) {
    check_lent();
    change(client, name, [&](mcp_server& server) {
      if (!server.connected) {
        throw api_error(error_kind::not_found, "Not connected to MCP server '" + name + "'");
      }
      server.connected = server.enabled = false;
    });
  }

 private:
  static constexpr const char* kind = "tools";
  static constexpr std::size_t max_configurations = 1'000;    ///< of one client's sessions
  static constexpr std::size_t max_server_bytes = 32 * 1024;  ///< of all that one client adds

  static tool_configuration default_configuration() {
    const auto now = std::chrono::system_clock::now();
    return {std::vector<std::string>{"Read", "Glob", "Grep", "Bash", "Write", "Edit"},
            {"Task", "WebFetch", "WebSearch"},
            now,
            now,
            std::chrono::steady_clock::now(),
            {}};
  }

  /// Throws a 403 where tools are lent to nobody.
  void check_lent() const {
    if (settings_.builtin_tools) return;
    throw api_error(error_kind::permission,
                    "this proxy does not lend Claude Code's own tools (--no-builtin-tools)");
  }

  [[noreturn]] static void refuse_name(const std::string& name, const std::string& taken) {
    throw api_error(error_kind::permission, "an MCP server cannot be named '" + name + "' here: '" +
                                                taken + "' has that name's tools");
  }

  static std::size_t size_of(const mcp_server& server) {
    return server.name.size() + server.description.size() + dump(server.config).size();
  }

  static std::vector<std::string> without_doubles(std::vector<std::string> names) {
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    return names;
  }

  /// Each client's agents have a directory of their own; they work in it unless the operator or the
  /// client names another.
  void assign_places(agent_request& agent, const std::string& client) const {
    try {
      guard_.prepare();
      write_confining_script(settings_);
    } catch (const std::system_error& failure) {
      throw api_error(error_kind::unavailable, failure.what());
    }
    const auto agents = scratch_ + "/agents";
    agent.private_directory = agents + "/" + (client.empty() ? "keyless" : client);
    agent.directory = agent.private_directory + "/work";
    for (const auto& made :
         {agents, agent.private_directory, agent.directory, agent.private_directory + "/tmp",
          agent.private_directory + "/claude"}) {
      ::mkdir(made.c_str(), 0700);
    }
    const auto& usual = settings_.working_directory;
    if (!usual.empty() && usual != scratch_) agent.directory = usual;
    std::error_code failed;
    const auto real = std::filesystem::canonical(agent.directory, failed);
    if (!failed) agent.directory = real.string();
  }

  void apply_directory(turn_request& request, const agent_headers& asked) const {
    auto& agent = *request.agent;
    assign_places(agent, request.client);
    if (!asked.directory) return;
    namespace files = std::filesystem;
    std::error_code failed;
    const auto wanted = files::canonical(*asked.directory, failed);
    if (!failed && files::is_directory(wanted, failed)) {
      for (const auto& root : settings_.agent_roots) {
        const auto above = files::canonical(root, failed);
        const auto differ = std::mismatch(above.begin(), above.end(), wanted.begin(), wanted.end());
        if (failed || differ.first != above.end()) continue;
        agent.directory = wanted.string();
        return;
      }
    }
    // One answer, whether it exists or not: that is nothing for a client to know.
    throw api_error(
        error_kind::permission,
        "X-Claude-Cwd is no directory that this proxy allows, nor in one (--allowed-cwd)");
  }

  /// Tries a server as agents start it.
  command probe_command(const std::string& client, const mcp_server& server) {
    if (server.operators || confinement_here() != confinement::commands) {
      return agent_rules::server_command(settings_, server.config);
    }
    agent_request agent;
    assign_places(agent, client);
    auto made = agent_rules::server_command(settings_, json::object());
    made.arguments = {confining_script_path(settings_)};
    made.working_directory = agent.directory;
    confine_commands(settings_, agent, made);
    made.environment["CLAUDE_OPENAI_CONFINED"] = agent_rules::confined_line(server.config);
    return made;
  }

  /// Changes the client's server of that name, and returns it as it is then. Throws a 404 where
  /// there is none. Takes the lock.
  template <class Change>
  mcp_server change(const std::string& client, const std::string& name, Change what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& server : servers_of(client)) {
      if (server.name != name) continue;
      what(server);
      return server;
    }
    throw api_error(error_kind::not_found, "MCP server '" + name + "' is not registered");
  }

  // Everything below needs the lock.

  /// The client's own list, which begins with the operator's servers: what one client switches off
  /// others keep.
  std::vector<mcp_server>& servers_of(const std::string& client) {
    return servers_.try_emplace(client, operator_servers_).first->second;
  }

  /// With what the operator lends of it.
  tool_configuration describe(tool_configuration kept) const {
    const auto& denied = settings_.disallowed_tools;
    for (auto& tool : kept.effective()) {
      const bool lent = settings_.builtin_tools && agent_rules::may_have(settings_, tool, {}) &&
                        std::find(denied.begin(), denied.end(), tool) == denied.end();
      if (lent) kept.lent.push_back(std::move(tool));
    }
    return kept;
  }

  /// What holds for the session, or else for the client. A session's ends with its session.
  const tool_configuration& configuration_of(const std::string& client,
                                             const std::string& session) {
    state_->require();  // else a client's agents might get what it has ruled out
    sweep();
    auto& own = configurations_[client];
    if (state_->is_shared()) own = shared_configurations(client, session);
    auto found = own.find(session);
    if (found == own.end()) {
      found = own.try_emplace(std::string(), default_configuration()).first;
    }
    found->second.used = std::chrono::steady_clock::now();
    return found->second;
  }

  void sweep() {
    const auto oldest = std::chrono::steady_clock::now() - settings_.session_ttl;
    for (auto& [client, own] : configurations_) {
      for (auto kept = own.begin(); kept != own.end();) {
        const bool expired = !kept->first.empty() && kept->second.used < oldest;
        kept = expired ? forget(client, kept) : std::next(kept);
      }
    }
  }

  using configurations = std::map<std::string, tool_configuration>;

  /// Those of the session and of the client that a shared store has.
  configurations shared_configurations(const std::string& client, const std::string& session) {
    configurations found;
    for (const auto& id : std::set<std::string>{session, {}}) {
      const auto stored = state_->fetch(kind, client, id);
      if (stored && stored->head.is_object()) found[id] = decode_configuration(stored->head);
    }
    return found;
  }

  configurations::iterator forget(const std::string& client, configurations::iterator gone) {
    if (!state_->is_shared()) state_->remove(kind, client, gone->first);
    return configurations_[client].erase(gone);
  }

  const options& settings_;
  std::string scratch_;
  const child_guard& guard_;
  const std::shared_ptr<state_store> state_;
  std::once_flag sandbox_tried_;
  std::string sandbox_problem_;  ///< empty: it works
  std::mutex mutex_;
  std::vector<mcp_server> operator_servers_;
  std::map<std::string, std::vector<mcp_server>> servers_;  ///< by client
  std::map<std::string, configurations>
      configurations_;  ///< by client and session; that without one is the client's
};

//================================================================================================
// [26] demo - a stand-in for the CLI, in this program
// uses: text, errors, json_access, options, cli_protocol, process | one thread
//================================================================================================
//
// Answers without an account, a network or a model, so that a client can be tried: the proxy
// starts its own program as it would start `claude`, and all else is as ever. What it is told
// decides all that it says, ids and counts of tokens included: no clock, no chance.

namespace demo {

/// The CLI whose lines these are.
constexpr const char* version = "2.1.330-demo";

/// What the user's last text may hold, anywhere in it, and what that does; docs/demo.md repeats it.
/// An argument ends where the next command begins.
constexpr std::array<std::pair<std::string_view, std::string_view>, 13> commands = {{
    {"/help", "answers with this table"},
    {"/say TEXT", "answers with TEXT and nothing else"},
    {"/long N", "answers with N words"},
    {"/json {...}", "answers with this JSON, or makes some up; also where a schema asks for it"},
    {"/think", "thinks first, as it does when the request switches thinking on"},
    {"/tool NAME {...}", "calls this tool, or the first; makes arguments up where none are given"},
    {"/tools", "calls two tools at once"},
    {"/max", "stops half-way, as at max_tokens"},
    {"/refuse", "stops half-way, as when the model refuses"},
    {"/error STATUS", "fails as if the API had answered with this HTTP status"},
    {"/crash", "the process ends half-way"},
    {"/hang", "says nothing until the request is given up"},
    {"/fast", "does not wait between words"},
}};

/// Words end at blanks, and at commas for JSON's sake.
constexpr std::string_view separators = " ,\t\r\n";

/// The words, each with what stands before it.
inline std::vector<std::string_view> pieces_of(std::string_view content) {
  std::vector<std::string_view> pieces;
  for (std::size_t at = 0; at < content.size(); at += pieces.back().size()) {
    const auto end = content.find_first_of(separators, content.find_first_not_of(separators, at));
    pieces.push_back(content.substr(at, end - at));
  }
  return pieces;
}

/// The arguments by the command.
using wishes = std::map<std::string_view, std::string>;

inline wishes find_commands(std::string_view content) {
  wishes found;
  std::string* argument = nullptr;
  for (const auto piece : pieces_of(content)) {
    const auto word = piece.substr(std::min(piece.find_first_not_of(separators), piece.size()));
    const auto* command = std::find_if(commands.begin(), commands.end(), [&](const auto& one) {
      return word == one.first.substr(0, one.first.find(' '));
    });
    if (command != commands.end()) {
      argument = &found[command->first.substr(0, word.size())];
      argument->clear();
    } else if (argument != nullptr) {
      *argument += piece;
    }
  }
  for (auto& wish : found) wish.second = text::trim(wish.second);
  return found;
}

inline std::string first_word(std::string_view argument) {
  return argument.empty() ? std::string() : std::string(pieces_of(argument).front());
}

/// The object in the argument of a command; null when there is none.
inline json object_in(const wishes& asked, const char* command) {
  if (asked.count(command) == 0) return {};
  const auto& argument = asked.at(command);
  const auto begin = std::min(argument.find('{'), argument.size());
  try {
    return parse_body(argument.substr(begin, argument.rfind('}') + 1 - begin));
  } catch (const api_error&) {
    return {};
  }
}

// ---- values that follow a schema ----------------------------------------------------------------

/// What a `$ref` refers to; any other schema as it is.
inline const json& resolve(const json& schema, const json& root) {
  const auto* found = &schema;
  for (const auto& step : text::split(string_of(schema, "$ref"), '/')) {
    found = step == "#" ? &root : &member_of(*found, step.c_str());
  }
  return *found;
}

inline json sample_number(const json& schema) {
  const auto bound = [&](const char* name, double fallback) {
    const auto& member = member_of(schema, name);
    return member.is_number() ? member.get<double>() : fallback;
  };
  double value = std::max(bound("minimum", 1), bound("exclusiveMinimum", 0) + 1);
  value = std::min({value, bound("maximum", value), bound("exclusiveMaximum", value + 1) - 1});
  const bool whole = value == std::floor(value) && std::abs(value) < 1e15;
  return whole ? json(static_cast<std::int64_t>(value)) : json(value);
}

inline std::string sample_string(const json& schema) {
  constexpr std::array<std::pair<const char*, const char*>, 5> formats = {
      {{"date", "2026-01-01"},
       {"date-time", "2026-01-01T00:00:00Z"},
       {"email", "demo@example.com"},
       {"uri", "https://example.com/"},
       {"uuid", "00000000-0000-4000-8000-000000000000"}}};
  const auto description =
      string_of(schema, "description") + "(format: " + string_of(schema, "format") + ")";
  for (const auto& [format, value] : formats) {  // where `encode_schema` tells it, or a tool's own
    if (description.find("(format: " + std::string(format) + ")") != std::string::npos)
      return value;
  }
  const auto size = std::clamp<std::int64_t>(integer_of(schema, "minLength"), 4, 10'000);
  return "dem" + std::string(static_cast<std::size_t>(size - 3), 'o');
}

/// The same value for the same schema every time, with what is required. `left` is how many values
/// it may still hold: a schema may require itself.
inline json sample(const json& given, const json& root, int& left) {
  const auto& schema = resolve(given, root);
  if (--left < 0) return {};
  for (const char* name : {"const", "default"}) {
    if (const auto& fixed = member_of(schema, name); !fixed.is_null()) return fixed;
  }
  if (const auto& list = member_of(schema, "enum"); !list.empty()) return list.front();
  for (const char* name : {"anyOf", "oneOf", "allOf"}) {
    const auto& list = member_of(schema, name);
    if (!list.empty()) return sample(list.front(), root, left);
  }
  const auto& types = member_of(schema, "type");
  const auto& type = types.is_array() && !types.empty() ? types.front() : types;
  const auto& properties = member_of(schema, "properties");
  if (type == "array") {
    json made = json::array();
    const auto count = std::max<std::int64_t>(integer_of(schema, "minItems"), 1);
    for (std::int64_t i = 0; i < count && left > 0; ++i) {
      made.push_back(sample(member_of(schema, "items"), root, left));
    }
    return made;
  }
  json made = json::object();
  for (const auto& name : member_of(schema, "required")) {
    const auto key = name.is_string() ? name.get<std::string>() : std::string();
    made[key] = sample(member_of(properties, key.c_str()), root, left);
  }
  if (type == "object" || !properties.is_null()) return made;
  if (type == "integer" || type == "number") return sample_number(schema);
  if (type == "boolean") return true;
  return type == "null" ? json() : json(sample_string(schema));
}

inline json sample(const json& schema) {
  int left = 2'000;
  return sample(schema, schema, left);
}

// ---- what it reads ------------------------------------------------------------------------------

/// All that an answer depends on.
struct conversation {
  std::string system;
  json tools = json::array();  ///< the client's, as its server lists them
  std::string tool_prefix;     ///< before their names, as the model calls them
  json schema;                 ///< null when the answer is free
  json body = json::object();  ///< what goes into the API's request as it is
  json messages = json::array();
  bool thinks = false;
};

inline std::vector<json> blocks_of(const json& message, std::string_view type) {
  std::vector<json> found;
  for (const auto& block : member_of(message, "content")) {
    if (string_of(block, "type") == type) found.push_back(block);
  }
  return found;
}

/// Three words are four tokens.
inline std::int64_t count_tokens(std::string_view content) {
  return static_cast<std::int64_t>((pieces_of(content).size() * 4 + 2) / 3);
}

/// What of a message the model would get, but for ids and thoughts, which not every client
/// brings back.
inline std::string substance_of(const json& message) {
  const auto& content = member_of(message, "content");
  auto shown = string_of(message, "role") + " " + content_text(content);
  for (const auto& block : content) {
    for (const char* name : {"name", "input", "source"}) {
      const auto& member = member_of(block, name);
      if (!member.is_null()) shown += " " + dump(member);
    }
    shown += " " + content_text(member_of(block, "content"));
  }
  return shown;
}

/// 16 digits that stand for the conversation (FNV-1a).
inline std::string fingerprint_of(const conversation& now) {
  auto whole = now.system;
  for (const auto& message : now.messages) whole += '\0' + substance_of(message);
  std::uint64_t hash = 14695981039346656037ULL;
  for (const char c : whole) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  std::string digits;
  for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[hash >> shift & 15U];
  return digits;
}

// ---- what it answers ----------------------------------------------------------------------------

/// A content block, sent word by word.
struct block {
  json start;          ///< as the API begins it
  const char* delta;   ///< what it calls the pieces,
  const char* member;  ///< and their text
  std::string words;
};

/// One message of the model that is not there.
struct plan {
  wishes asked;
  std::vector<block> blocks;
  std::string text;            ///< the answer in them
  json calls = json::array();  ///< of the client's tools, in them: {id, name, arguments}
  std::string stop_reason = "end_turn";
  json stop_sequence;
  std::int64_t thinking_tokens = 0;
  bool structured = false;  ///< the text is JSON, given as input of the CLI's own tool
  bool fast = false;

  bool has(const char* command) const { return asked.count(command) > 0; }
};

inline block make_tool_use(const std::string& id, const std::string& name, std::string input) {
  auto start = json::object({{"type", "tool_use"}, {"id", id}, {"name", name}});
  start["input"] = json::object();
  return {start, "input_json_delta", "partial_json", std::move(input)};
}

/// The name of the tool that the request forces or the user asks for; empty for any.
inline std::optional<std::string> wanted_tool(const conversation& now, const plan& made) {
  const auto& choice = member_of(now.body, "tool_choice");
  const auto how = string_of(choice, "type");
  const auto name = string_of(choice, "name");
  if (how == "none" || now.tools.empty()) return std::nullopt;
  if (how == "tool" && name != structured_tool) {
    return name.substr(std::min(name.size(), now.tool_prefix.size()));
  }
  if (made.has("/tool")) {
    const auto word = first_word(made.asked.at("/tool"));
    return text::starts_with(word, "{") ? "" : word;
  }
  return how == "any" || made.has("/tools") ? std::optional<std::string>("") : std::nullopt;
}

inline void plan_calls(const conversation& now, const std::string& name, plan& made) {
  const bool single = boolean_of(member_of(now.body, "tool_choice"), "disable_parallel_tool_use");
  const std::size_t most = made.has("/tools") && !single ? 2 : 1;
  for (const auto& tool : now.tools) {
    const auto own = string_of(tool, "name");
    if (made.calls.size() == most || (!name.empty() && own != name)) continue;
    auto input = object_in(made.asked, "/tool");
    if (input.is_null()) input = sample(member_of(tool, "inputSchema"));
    if (!input.is_object()) input = json::object();
    const auto id = "toolu_" + fingerprint_of(now) + std::to_string(made.calls.size());
    made.blocks.push_back(make_tool_use(id, now.tool_prefix + own, dump(input)));
    made.calls.push_back(json::object({{"id", id}, {"name", own}, {"arguments", input}}));
    made.stop_reason = "tool_use";
  }
  if (made.calls.empty()) made.text = "The client offers no tool " + name + ".";
}

inline std::string list_commands() {
  std::string list = "The demo of claude-openai knows:\n";
  for (const auto& [form, what] : commands) {
    list += "\n    " + std::string(form) + std::string(18 - form.size(), ' ') + std::string(what);
  }
  return list;
}

inline std::string plain_answer(const conversation& now, const std::string& content) {
  constexpr std::size_t most = 400;
  const auto& last = now.messages.back();
  std::string results;
  for (const auto& result : blocks_of(last, "tool_result")) {
    results += (results.empty() ? "" : "\n") + std::string("The tool ") +
               (boolean_of(result, "is_error") ? "failed: " : "answered: ") +
               content_text(member_of(result, "content"));
  }
  if (!results.empty()) return results;
  return "This is the demo of claude-openai: no model has read this. You said: \"" +
         text::repair_utf8(content.substr(0, most)) + (content.size() > most ? "..." : "") +
         "\". Messages: " + std::to_string(now.messages.size()) +
         ", bytes of system prompt: " + std::to_string(now.system.size()) +
         ", tools: " + std::to_string(now.tools.size()) +
         ", images: " + std::to_string(blocks_of(last, "image").size()) +
         ", documents: " + std::to_string(blocks_of(last, "document").size()) +
         ". Say /help to see what the demo can do.";
}

inline std::string make_text(const conversation& now, const std::string& content,
                             const plan& made) {
  if (made.structured || made.has("/json")) {
    const auto given = object_in(made.asked, "/json");
    const auto shown = json::object({{"demo", content}});
    return dump(!given.is_null() ? given : now.schema.is_null() ? shown : sample(now.schema));
  }
  if (made.has("/help")) return list_commands();
  if (made.has("/say")) return made.asked.at("/say");
  if (!made.has("/long")) return plain_answer(now, content);
  const auto count = text::try_number<std::size_t>(first_word(made.asked.at("/long")));
  constexpr std::size_t most = 1'000'000;
  return text::join(std::vector<std::string>(std::min(count.value_or(100), most), "word"), " ");
}

/// Ends the answer at a stop sequence, at `max_tokens`, or half-way where the user wants that.
inline void limit_text(const json& body, plan& made) {
  for (const auto& stop : member_of(body, "stop_sequences")) {
    const auto at = made.text.find(stop.get<std::string>());
    if (at == std::string::npos || made.structured) continue;
    made.text.resize(at);
    made.stop_reason = "stop_sequence";
    made.stop_sequence = stop;
  }
  const auto pieces = pieces_of(made.text);
  auto words = pieces.size();
  const bool halved = made.has("/max") || made.has("/refuse");
  const auto most = static_cast<std::size_t>(integer_of(body, "max_tokens"));
  if (most > 0 && words > most * 3 / 4) words = std::max<std::size_t>(most * 3 / 4, 1);
  if (halved) words = (words + 1) / 2;
  if (!halved && words == pieces.size()) return;
  if (words < pieces.size()) {
    made.text.resize(static_cast<std::size_t>(pieces[words].data() - made.text.data()));
  }
  made.stop_reason = made.has("/refuse") ? "refusal" : "max_tokens";
  made.stop_sequence = json();
}

inline void plan_text(const conversation& now, const std::string& content, plan& made) {
  made.structured = !now.schema.is_null();
  if (made.text.empty() || made.structured) made.text = make_text(now, content, made);
  limit_text(now.body, made);
  if (made.structured) {
    const auto id = "toolu_" + fingerprint_of(now);
    made.blocks.push_back(make_tool_use(id, structured_tool, made.text));
  } else {
    const auto start = json::object({{"type", "text"}, {"text", ""}});
    made.blocks.push_back({start, "text_delta", "text", made.text});
  }
}

/// What the model would answer to the conversation, whose last message is the user's.
inline plan make_plan(const conversation& now) {
  plan made;
  std::string content;
  for (const auto& message : now.messages) {  // results of tools alone leave the pace as it was
    if (string_of(message, "role") != "user") continue;
    content = text::trim(content_text(member_of(message, "content")));
    made.asked = find_commands(content);
    if (!content.empty()) made.fast = made.has("/fast");
  }
  if (now.thinks || made.has("/think")) {
    const auto start = json::object({{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
    const auto words = "Words of the user's: " + std::to_string(pieces_of(content).size()) +
                       ". No model is here to think about them, so this is all.";
    made.blocks.push_back({start, "thinking_delta", "thinking", words});
    made.thinking_tokens = count_tokens(words);
  }
  if (const auto tool = wanted_tool(now, made)) plan_calls(now, *tool, made);
  if (made.calls.empty()) plan_text(now, content, made);
  return made;
}

/// All before the last message is reported as read from the API's cache.
inline json make_usage(const conversation& now, const plan& made) {
  auto input = count_tokens(now.system) + count_tokens(dump(now.tools));
  std::int64_t cached = 0;
  std::int64_t output = 0;
  for (const auto& message : now.messages) {
    if (&message != &now.messages.front()) cached += std::exchange(input, 0);
    input += count_tokens(substance_of(message));
  }
  for (const auto& one : made.blocks) output += count_tokens(one.words);
  const auto details = json::object({{"thinking_tokens", made.thinking_tokens}});
  return json::object({{"input_tokens", input},
                       {"cache_read_input_tokens", cached},
                       {"output_tokens", output},
                       {"output_tokens_details", details}});
}

// ---- the process --------------------------------------------------------------------------------

/// What the proxy takes for `claude`: reads lines, also while it answers, and writes lines.
class stand_in {
 public:
  /// `pace` is the time between two words.
  stand_in(int input, int output, std::string model, std::string tool_prefix,
           std::chrono::milliseconds pace)
      : pipes_{input, output}, pace_(pace), model_(std::move(model)) {
    now_.tool_prefix = std::move(tool_prefix);
  }

  /// Until the input ends, or a `/crash`. The exit status.
  int run() {
    for (;;) {
      for (; !failed_ && !waiting_.empty(); waiting_.pop_front()) take_message(waiting_.front());
      if (failed_ || ended_) return failed_ ? 1 : 0;
      wait(-1);
    }
  }

 private:
  static constexpr const char* tools_request = "tools";

  /// Takes what comes within that many milliseconds; less than 0 is for ever.
  void wait(int timeout) {
    pollfd entry{pipes_.input, POLLIN, 0};
    if (ended_ || ::poll(&entry, 1, timeout) <= 0) return;
    std::array<char, 65536> chunk;
    const ssize_t count = ::read(pipes_.input, chunk.data(), chunk.size());
    ended_ = count <= 0;
    if (ended_) return;
    lines_.feed({chunk.data(), static_cast<std::size_t>(count)});
    while (const auto line = lines_.next()) take_line(*line);
  }

  void pause(std::chrono::milliseconds time) {
    const auto until = std::chrono::steady_clock::now() + time;
    do {
      wait(poll_timeout(until));
    } while (!over() && !ended_ && std::chrono::steady_clock::now() < until);
  }

  /// The answer that is under way has no further lines.
  bool over() const { return interrupted_ || failed_; }

  void take_line(std::string_view received) {
    const json line = try_parse_json(received, max_line_depth);
    if (!line.is_object()) return fail("a line is not a JSON object");
    const auto type = string_of(line, "type");
    if (type == "control_request") take_request(line);
    if (type == "control_response") take_response(member_of(line, "response"));
    if (type == "user" || type == "assistant") waiting_.push_back(line);
  }

  void take_request(const json& line) {
    const auto& request = member_of(line, "request");
    const auto subtype = string_of(request, "subtype");
    json answer = json::object();
    if (subtype == "initialize") {
      initialize(request);
      answer["account"] = json::object({{"tokenSource", "demo"}, {"apiProvider", "firstParty"}});
    }
    if (subtype == "apply_flag_settings") {
      const auto& variables = member_of(member_of(request, "settings"), "env");
      const auto body =
          try_parse_json(string_of(variables, "CLAUDE_CODE_EXTRA_BODY"), max_line_depth);
      if (body.is_object()) now_.body = body;
    }
    if (subtype == "set_max_thinking_tokens") {
      now_.thinks = integer_of(request, "max_thinking_tokens") > 0;
    }
    if (subtype == "get_settings") answer["effective"] = json::object();
    if (subtype == "set_model") model_ = string_of(request, "model");
    if (subtype == "interrupt") interrupted_ = !waiting_.empty();
    if (subtype == "rewind_conversation") answer["rewound"] = rewind(request);
    const auto id = string_of(line, "request_id");
    const auto response =
        json::object({{"subtype", "success"}, {"request_id", id}, {"response", answer}});
    write(json::object({{"type", "control_response"}, {"response", response}}));
  }

  void initialize(const json& request) {
    now_.system = string_of(request, "appendSystemPrompt");
    for (const auto& prompt : member_of(request, "systemPrompt"))
      now_.system += prompt.get<std::string>();
    now_.schema = member_of(request, "jsonSchema");
    tools_awaited_ = !member_of(request, "sdkMcpServers").empty();
    if (!tools_awaited_) return;
    ask_client("initialize", "initialize", json::object({{"protocolVersion", "2025-11-25"}}));
    ask_client(tools_request, "tools/list", json::object());
  }

  /// Takes a message of the user's back, with all after it.
  bool rewind(const json& request) {
    const auto place = places_.find(string_of(request, "target_message_uuid"));
    if (place == places_.end() || place->second > now_.messages.size()) return false;
    auto& messages = now_.messages.get_ref<json::array_t&>();
    messages.resize(place->second);
    places_.erase(place);
    return true;
  }

  /// Asks the client's tool server, which lives in the proxy.
  void ask_client(const std::string& id, const char* method, const json& params) {
    const auto message = json::object(
        {{"jsonrpc", "2.0"}, {"id", ++asked_}, {"method", method}, {"params", params}});
    auto line = json::object({{"type", "control_request"}, {"request_id", id}});
    line["request"] = json::object(
        {{"subtype", "mcp_message"}, {"server_name", tool_server}, {"message", message}});
    write(line);
  }

  void take_response(const json& response) {
    const auto id = string_of(response, "request_id");
    const auto& reply = member_of(member_of(response, "response"), "mcp_response");
    results_[id] = member_of(reply, "result");
    if (id != tools_request) return;
    now_.tools = member_of(results_[id], "tools");
    tools_awaited_ = false;
  }

  void write(const json& line) {
    if (!write_all(pipes_.output, dump(line) + '\n')) failed_ = true;
  }

  /// A line of the answer, unless that is over.
  void say(const char* type, const json& members) {
    auto line = json::object({{"type", type}, {"parent_tool_use_id", json()}});
    line.update(members);
    if (!over()) write(line);
  }

  void say_event(const char* type, const json& members) {
    auto event = json::object({{"type", type}});
    event.update(members);
    say("stream_event", json::object({{"event", event}}));
  }

  void take_message(const json& line) {
    places_[string_of(line, "uuid")] = now_.messages.size();
    now_.messages.push_back(member_of(line, "message"));
    if (string_of(line, "type") == "assistant") return;
    const bool asks = member_of(line, "shouldQuery") != false;
    interrupted_ = interrupted_ && asks;
    const auto tools = now_.schema.is_null() ? json::array() : json::array({structured_tool});
    say("system", json::object({{"subtype", "init"}, {"model", model_}, {"tools", tools}}));
    if (!asks) return say_result({}, json::object());
    while (tools_awaited_ && !ended_) wait(-1);
    // A limit that is never reached, for those who show it.
    const auto limit = json::object(
        {{"status", "allowed"}, {"rateLimitType", "five_hour"}, {"utilization", 0.25}});
    say("rate_limit_event", json::object({{"rate_limit_info", limit}}));
    while (answer()) {
    }
    interrupted_ = false;
  }

  /// One message of the turn, and the turn's result unless another message is to follow.
  bool answer() {
    const auto made = make_plan(now_);
    while (made.has("/hang") && !over() && !ended_) wait(-1);
    if (made.has("/hang") && !over()) return false;
    if (made.has("/error") && !over()) {
      say_failure(text::try_number<int>(first_word(made.asked.at("/error"))).value_or(500));
      return false;
    }
    if (!over()) say_message(made);
    if (!made.calls.empty() && !over()) return await_results(made.calls);
    end_turn(made);
    return false;
  }

  void say_message(const plan& made) {
    const auto usage = make_usage(now_, made);
    auto first = usage;
    first["output_tokens"] = 1;
    const auto id = "msg_" + fingerprint_of(now_);
    const auto message = json::object({{"id", id}, {"model", model_}, {"usage", first}});
    say_event("message_start", json::object({{"message", message}}));
    for (std::size_t i = 0; i < made.blocks.size(); ++i) say_block(made, i);
    const bool given = made.structured && made.stop_reason == "end_turn";
    const auto delta = json::object({{"stop_reason", given ? "tool_use" : made.stop_reason},
                                     {"stop_sequence", made.stop_sequence}});
    say_event("message_delta", json::object({{"delta", delta}, {"usage", usage}}));
    say_event("message_stop", json::object());
    // As a middling model would cost.
    cost_ += 3e-6 * static_cast<double>(integer_of(usage, "input_tokens")) +
             15e-6 * static_cast<double>(integer_of(usage, "output_tokens"));
  }

  void say_block(const plan& made, std::size_t index) {
    const auto& block = made.blocks[index];
    const auto say_delta = [&](const char* type, const char* member, std::string_view piece) {
      const auto delta = json::object({{"type", type}, {member, piece}});
      say_event("content_block_delta", json::object({{"index", index}, {"delta", delta}}));
    };
    say_event("content_block_start",
              json::object({{"index", index}, {"content_block", block.start}}));
    const auto pieces = pieces_of(block.words);
    const bool crashes = made.has("/crash") && index + 1 == made.blocks.size();
    for (std::size_t i = 0; i < pieces.size() && !over(); ++i) {
      pause(made.fast ? std::chrono::milliseconds(0) : pace_);
      say_delta(block.delta, block.member, pieces[i]);
      if (crashes && i >= pieces.size() / 2) fail("it was asked to /crash");
    }
    if (block.start["type"] == "thinking") say_delta("signature_delta", "signature", "ZGVtbw==");
    say_event("content_block_stop", json::object({{"index", index}}));
  }

  /// Waits for the client, for as long as it takes, and adds the calls and their results to the
  /// conversation, as a client would tell them to a fresh process. False when none will come.
  bool await_results(const json& calls) {
    json calls_sent = json::array();
    json results = json::array();
    for (auto call : calls) {
      const auto id = string_of(call, "id");
      calls_sent.push_back(make_tool_use(id, now_.tool_prefix + string_of(call, "name"), {}).start);
      calls_sent.back()["input"] = call["arguments"];
      call["_meta"] = json::object({{"claudecode/toolUseId", id}});
      call.erase("id");
      ask_client(id, "tools/call", call);
    }
    for (const auto& call : calls) {
      const auto id = string_of(call, "id");
      while (results_.count(id) == 0 && !over() && !ended_) wait(-1);
      results.push_back(json::object({{"type", "tool_result"},
                                      {"content", member_of(results_[id], "content")},
                                      {"is_error", boolean_of(results_[id], "isError")}}));
    }
    now_.messages.push_back(json::object({{"role", "assistant"}, {"content", calls_sent}}));
    now_.messages.push_back(json::object({{"role", "user"}, {"content", results}}));
    return !ended_;
  }

  void end_turn(const plan& made) {
    if (std::exchange(interrupted_, false)) {
      const char* how = "error_during_execution";
      return say_result({}, json::object({{"subtype", how}, {"is_error", true}}));
    }
    now_.messages.push_back(json::object({{"role", "assistant"}, {"content", made.text}}));
    auto more = json::object({{"stop_reason", made.stop_reason}});
    if (made.structured && made.stop_reason == "end_turn") {
      more["structured_output"] = try_parse_json(made.text);
    }
    say_result(made.text, more);
  }

  void say_result(const std::string& result, const json& more) {
    auto members = json::object({{"subtype", "success"}, {"is_error", false}, {"result", result}});
    members["total_cost_usd"] = cost_;
    members.update(more);
    say("result", members);
  }

  /// As after the one retry that the proxy allows, where the API's failure is worth one.
  void say_failure(int status) {
    const auto failure = "API Error: " + std::to_string(status) + " the demo was asked to fail";
    if (status == 429 || status >= 500) {
      say("system", json::object({{"subtype", "api_retry"},
                                  {"retry_delay_ms", 500},
                                  {"error_status", status},
                                  {"error", "unknown"}}));
    }
    say_result(failure, json::object({{"is_error", true}, {"api_error_status", status}}));
  }

  /// Ends the process.
  void fail(const char* why) {
    write_all(STDERR_FILENO, "demo: " + std::string(why) + "\n");
    failed_ = true;
  }

  struct {
    int input;
    int output;
  } pipes_;
  std::chrono::milliseconds pace_;
  std::string model_;
  conversation now_;
  line_splitter lines_;
  std::deque<json> waiting_;                   ///< messages; the first one is being answered
  std::map<std::string, json> results_;        ///< of what the client was asked, by id
  std::map<std::string, std::size_t> places_;  ///< of the user's messages, by uuid
  int asked_ = 0;
  bool tools_awaited_ = false;
  bool interrupted_ = false;
  bool ended_ = false;   ///< the input has
  bool failed_ = false;  ///< the process has
  double cost_ = 0;      ///< of all turns, in USD
};

/// Does what `claude` would do with these arguments; the exit status. `--pace=20ms` among them is
/// the time between two words.
inline int run(const std::vector<std::string>& arguments, const environment_map& environment,
               int input, int output) {
  const auto value_of = [&](std::string_view flag, const char* fallback) -> std::string {
    for (const auto& argument : arguments) {
      if (text::starts_with(argument, flag)) return argument.substr(flag.size());
    }
    return fallback;
  };
  if (std::find(arguments.begin(), arguments.end(), "--version") != arguments.end()) {
    return write_all(output, std::string(version) + " (claude-openai --demo)\n") ? 0 : 1;
  }
  const bool bare_names = !value_or(environment, "CLAUDE_AGENT_SDK_MCP_NO_PREFIX").empty();
  const auto prefix = bare_names ? std::string() : "mcp__" + std::string(tool_server) + "__";
  constexpr std::chrono::milliseconds usual_pace{10};
  const auto pace = try_duration(value_of("--pace=", "")).value_or(usual_pace);
  return stand_in(input, output, value_of("--model=", "claude-demo"), prefix, pace).run();
}

constexpr std::string_view argument =
    "demo-claude";  ///< the first of a program that plays `claude`

/// Plays `claude` to the end and exits, when `use_demo` has this program started for that.
inline void play_if_asked(int argc, char** argv) {
  if (argc < 2 || argv[1] != argument) return;
  std::exit(run({argv + 2, argv + argc}, current_environment(), STDIN_FILENO, STDOUT_FILENO));
}

/// `program`: the path of one that calls `play_if_asked`.
inline void set_up(options& settings, const std::string& program) {
  settings.demo = true;
  settings.claude_path = program;
  settings.claude_arguments = {std::string(argument)};
  settings.auth = auth_method::cli;
}

}  // namespace demo

/// Has a stand-in answer in place of `claude`, without an account or a network. It is this program,
/// started anew: call this first in `main`, which it does not leave when that is the case.
inline void use_demo(options& settings, int argc, char** argv) {
  demo::play_if_asked(argc, argv);
  demo::set_up(settings, path_of_program(argv[0]));
}

//================================================================================================
// [27] guard - who may come in: client keys, Host and Origin
// uses: text, errors, options | pure, but for client_names: thread-safe
//================================================================================================

/// Whose process a connection comes from. `own`: the proxy's own user's, or root's.
enum class peer_user { own, other, unknown };

/// What of a request decides whether it is let in.
struct credentials {
  std::string host;           ///< `Host` header, or the authority of the target
  std::string origin;         ///< `Origin` header
  std::string authorization;  ///< `Authorization` header
  std::string api_key;        ///< `X-Api-Key` header, or Azure's `Api-Key`
  bool local = false;         ///< by a unix socket, which no web page reaches
  peer_user peer = peer_user::unknown;
};

/// Who asks.
struct visitor {
  std::string key;            ///< the valid one that was presented; empty without
  std::string label;          ///< for the log: `key-2` is the second key's holder
  std::string page_refusal;   ///< why it may chat and no more; empty: it is no foreign page
  std::string tools_refusal;  ///< why it may not use tools and MCP servers; empty: it may
  bool is_stranger = false;   ///< has not proven that it may chat: on open routes alone
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

/// The number of the key among those known, from 1 on; 0 for none of them. All are compared, so
/// that the time tells nothing.
inline std::size_t number_of_key(std::string_view presented, const std::vector<std::string>& keys) {
  std::size_t number = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (text::constant_time_equal(presented, keys[i])) number = i + 1;
  }
  return number;
}

/// A name that a web page cannot make ours by DNS: an address, a loopback name, or the host
/// that the options name.
inline bool is_own_host(std::string_view host, const options& settings) {
  const auto name = host_name(host);
  return name.empty() || is_ip_literal(name) || name == "localhost" ||
         name == host_name(settings.host);
}

/// The origin of a page that may do more than chat: our own page's, or one that the operator named.
inline bool is_trusted_origin(const credentials& shown, const options& settings) {
  const std::string_view origin = shown.origin;
  const auto& named = settings.cors_origins;
  const auto is_named = [&](std::string_view one) {
    return std::find(named.begin(), named.end(), one) != named.end();
  };
  const auto scheme_end = origin.find("://");
  if (is_named("*") || is_named(origin)) return true;
  if (scheme_end == std::string_view::npos) return false;
  const auto place = text::to_lower(origin.substr(scheme_end + 3));
  // `localhost` has two addresses, and where we listen at one the other can be somebody else's.
  const bool ambiguous = host_name(place) == "localhost" && host_name(settings.host) != "localhost";
  return !ambiguous && place == text::to_lower(shown.host);
}

/// The origin of a page that may ask the model: any page of this machine may, too.
inline bool is_welcome_origin(const credentials& shown, const options& settings) {
  const std::string_view origin = shown.origin;
  const auto scheme_end = origin.find("://");
  if (is_trusted_origin(shown, settings)) return true;
  return scheme_end != std::string_view::npos &&
         is_loopback_name(host_name(origin.substr(scheme_end + 3)));
}

#ifdef CPPHTTPLIB_OPENSSL_SUPPORT

/// Names clients by their keys without telling the keys: HMAC-SHA256 with a salt. Thread-safe.
class client_names {
 public:
  explicit client_names(std::string salt) : salt_(std::move(salt)) {}

  /// 64 hexadecimal digits, the same for the same salt and key; empty without a key. Throws
  /// `std::runtime_error` when OpenSSL fails: a client without a name would be everybody.
  std::string name_of(std::string_view key) const {
    if (key.empty()) return {};
    std::array<unsigned char, EVP_MAX_MD_SIZE> code{};
    unsigned size = 0;
    const auto* bytes = reinterpret_cast<const unsigned char*>(key.data());
    if (::HMAC(::EVP_sha256(), salt_.data(), static_cast<int>(salt_.size()), bytes, key.size(),
               code.data(), &size) == nullptr) {
      throw std::runtime_error("OpenSSL offers no HMAC-SHA256");
    }
    constexpr std::string_view digits = "0123456789abcdef";
    std::string name;
    for (unsigned i = 0; i < size; ++i) {
      name += digits[code[i] >> 4U];
      name += digits[code[i] & 15U];
    }
    return name;
  }

 private:
  std::string salt_;
};

#else

/// Names clients by their keys without telling the keys: at random, for this run. Thread-safe.
class client_names {
 public:
  explicit client_names(const std::string&) {}

  /// The same for the same key; empty without one.
  std::string name_of(const std::string& key) const {
    if (key.empty()) return {};
    const std::lock_guard<std::mutex> lock(mutex_);
    return names_.emplace(key, text::random_id("", 24)).first->second;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::string> names_;
};

#endif

/// Why this client may only chat; empty for none but foreign pages. What the proxy keeps is its
/// users': a page could read their words, and put words of its own before theirs.
inline std::string refuse_page(const credentials& shown, const options& settings) {
  if (shown.origin.empty() || is_trusted_origin(shown, settings)) return {};
  return "pages of origin '" + text::repair_utf8(shown.origin) +
         "' may chat, and not use tools, MCP servers, sessions, stored responses or what the proxy "
         "tells of itself; name it with --cors-origin to allow that";
}

/// Why this client may not use Claude Code's tools and MCP servers; empty when it may. They are
/// commands on this machine: a key or the proxy's own user is needed, and no foreign page.
inline std::string refuse_tools(const credentials& shown, const options& settings, bool has_key) {
  auto page = refuse_page(shown, settings);
  if (!page.empty()) return page;
  if (has_key || shown.peer == peer_user::own || settings.allow_keyless_tools) return {};
  return "this system does not tell which user asks, so tools and MCP servers need a client key "
         "(--api-key) or --allow-keyless-tools";
}

/// Tells who the client is, or throws a 401 or 403 if it may not come in. A client with a key
/// proves more than its Host header does; without keys only names of this machine are answered (DNS
/// rebinding), and only to the proxy's own user where the system tells users apart.
inline visitor check_access(const credentials& shown, const options& settings, bool needs_key) {
  if (!shown.origin.empty() && !is_welcome_origin(shown, settings)) {
    throw api_error(error_kind::permission,
                    "pages of origin '" + text::repair_utf8(shown.origin) +
                        "' may not use this proxy; name it with --cors-origin to allow it");
  }
  const auto key = presented_key(shown);
  const auto number = number_of_key(key, settings.api_keys);
  if (number == 0 && !shown.local && !is_own_host(shown.host, settings)) {
    throw api_error(error_kind::permission, "this proxy does not answer to the host name '" +
                                                text::repair_utf8(shown.host) +
                                                "'; use its address or a client key");
  }
  visitor who{{}, {}, refuse_page(shown, settings), refuse_tools(shown, settings, number > 0)};
  if (number > 0) {
    who.key = key;
    who.label = "key-" + std::to_string(number);
    return who;
  }
  const bool open = settings.api_keys.empty();
  const bool foreign = open && shown.peer == peer_user::other;
  if (needs_key && foreign) {
    throw api_error(error_kind::authentication,
                    "without a client key this proxy serves the programs of its own user alone, "
                    "and yours run as another one; start it with --api-key and send that key");
  }
  who.is_stranger = foreign || !open;
  if (!needs_key || open) return who;
  throw api_error(error_kind::authentication,
                  key.empty() ? "Missing API key: send 'Authorization: Bearer KEY' or 'x-api-key'"
                              : "Invalid API key");
}

//================================================================================================
// [28] limits - how often a client may ask, and how much it may use
// uses: text, errors, json_access, options, events, store, guard | thread-safe
//================================================================================================

/// Endpoints that are counted together. `none` is not counted: pages, models and figures.
enum class endpoint_group { none, chat, debug, auth, session, health, other };

inline int limit_of(endpoint_group group, const rate_limits& limits) {
  switch (group) {
    case endpoint_group::chat: return limits.chat;
    case endpoint_group::debug: return limits.debug;
    case endpoint_group::auth: return limits.auth;
    case endpoint_group::session: return limits.session;
    case endpoint_group::health: return limits.health;
    case endpoint_group::other: return limits.other;
    case endpoint_group::none: break;
  }
  return std::numeric_limits<int>::max();
}

/// An agent alone makes dozens of calls a minute, so this machine's own users are not limited
/// unless the operator says so.
inline bool is_limited(const options& settings) {
  return settings.limits.enabled.value_or(!is_private(settings));
}

/// A client with one address of IPv6 has some 2^64 of them, so the network of 64 bits is what
/// counts.
inline std::string network_of(const std::string& address) {
  in6_addr parsed{};
  if (::inet_pton(AF_INET6, address.c_str(), &parsed) != 1) return address;
  constexpr std::size_t bytes = 8;
  return std::string(reinterpret_cast<const char*>(&parsed), bytes);
}

/// Counts requests in fixed windows of a minute, what keys have used in a minute and in a day, and
/// wrong keys. In memory alone, but for a day's use of a key. A shared store counts for all who
/// share it; while it is gone, each counts for itself. So it does the looks at its health: those
/// who check several proxies would use up one limit, and the checks would wait for the store.
class limiter {
 public:
  explicit limiter(std::shared_ptr<state_store> state = std::make_shared<state_store>())
      : state_(std::move(state)) {
    enter_day();
    for (const auto& record : state_->read(kind)) {
      if (integer_of(record.head, "day") != day_) {
        state_->remove(kind, record.client, record.id);
        continue;
      }
      const auto& usd = member_of(record.head, "usd");
      day_use_[record.client] = {integer_of(record.head, "requests"),
                                 integer_of(record.head, "tokens"),
                                 usd.is_number() ? usd.get<double>() : 0};
    }
  }

  /// How a client stands; what the headers tell.
  struct standing {
    int limit = 0;
    int remaining = 0;
    std::chrono::milliseconds reset{0};
    bool allowed = true;
  };

  /// Counts a request by its client: an address, or the name of a key's holder.
  standing count(endpoint_group group, const std::string& who, const rate_limits& limits) {
    const int limit = limit_of(group, limits);
    const auto name = std::to_string(static_cast<int>(group)) + ":" + network_of(who);
    const bool own = group == endpoint_group::health;
    if (const auto shared = own ? std::nullopt : state_->count(name, limit)) {
      const auto left = std::max<std::int64_t>(0, limit - shared->count);
      return {limit, static_cast<int>(left), shared->reset, shared->counted};
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto reset = enter_minute();
    auto& counted = counter(requests_, {group, network_of(who)}, {group, "others"});
    const bool allowed = counted < limit;
    if (allowed) ++counted;
    return {limit, limit - counted, reset, allowed};
  }

  /// Counts the requests and reserves what they may use, roughly, until `charge`, which must
  /// follow. Throws a 429 when the client has used up what a key may use, or when others of its
  /// requests may still use up the rest: one alone may go over a budget, many at once may not.
  /// Returns the id of a reservation in a shared store; empty: it was made here.
  std::string reserve(const std::string& client, const budget& wanted, const options& settings) {
    const auto id = text::random_id("", 22);
    if (const auto use = state_->reserve(client, id, wanted, settings)) {
      if (use->reserved) return id;
      refuse_spent(use->minute, use->held, wanted, settings.minute_budget, "minute",
                   use->minute_left);
      refuse_spent(use->day, use->held, wanted, settings.day_budget, "day", use->day_left);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto minute_left = enter_minute();
    const auto day_left = enter_day();
    auto& in_minute = minute_use_[client];
    auto& in_day = day_use_[client];
    auto& held = reserved_[client];
    refuse_spent(in_minute, held, wanted, settings.minute_budget, "minute", minute_left);
    refuse_spent(in_day, held, wanted, settings.day_budget, "day", day_left);
    in_minute.requests += wanted.requests;
    in_day.requests += wanted.requests;
    held.add(wanted);
    return {};
  }

  /// Charges what the requests have used in place of what was reserved for them.
  void charge(const std::string& client, const budget& reserved, const token_usage& used,
              const std::string& reservation = {}) {
    const budget sum{0, used.prompt() + used.output, used.charge_usd};
    if (state_->charge(client, reservation, sum) && !reservation.empty()) return;
    if (state_->is_shared()) {
      add_use(client, reservation.empty() ? reserved : budget{}, used);
      return;
    }
    // Writes stay in order, and a slow disk holds up no request that begins.
    const std::lock_guard<std::mutex> writing(write_mutex_);
    state_->write(kind, {client, "day", add_use(client, reserved, used)});
  }

  /// Counts a key as wrong before it is compared; `note_right_key` takes that back. Returns how
  /// long an address must wait that sent too many wrong keys this minute, unless it has lately
  /// shown a right one; nullopt when its key may be compared.
  std::optional<std::chrono::milliseconds> try_key(const std::string& address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto reset = enter_minute();
    auto& wrong = counter(wrong_keys_, network_of(address), "others");
    const auto known = right_keys_.find(network_of(address));
    const auto now = std::chrono::steady_clock::now();
    const bool trusted = known != right_keys_.end() && now - known->second < right_key_memory;
    if (!trusted && wrong >= max_wrong_keys) return reset;
    ++wrong;
    return std::nullopt;
  }

  void note_right_key(const std::string& address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    enter_minute();
    auto& wrong = counter(wrong_keys_, network_of(address), "others");
    wrong = std::max(0, wrong - 1);
    right_keys_[network_of(address)] = std::chrono::steady_clock::now();
    if (right_keys_.size() <= max_right_keys) return;
    const auto earlier = [](const auto& a, const auto& b) { return a.second < b.second; };
    right_keys_.erase(std::min_element(right_keys_.begin(), right_keys_.end(), earlier));
  }

  /// How long the answer to a wrong key waits: guessing gets slower, up to two seconds
  /// a guess.
  std::chrono::milliseconds wrong_key_delay(const std::string& address) {
    constexpr std::chrono::milliseconds longest{2'000};
    const auto shared = state_->count("wrong:" + network_of(address), max_wrong_keys);
    const std::lock_guard<std::mutex> lock(mutex_);
    enter_minute();
    auto& wrong = counter(wrong_keys_, network_of(address), "others");
    if (shared) wrong = std::max(wrong, static_cast<int>(shared->count));
    return std::min(longest, std::chrono::milliseconds(25 << std::clamp(wrong - 1, 0, 9)));
  }

 private:
  static constexpr const char* kind = "budget";
  /// More addresses than this in one minute share a count.
  static constexpr std::size_t max_kept_names = 100'000;
  static constexpr double least_usd = 1e-9;
  static constexpr int max_wrong_keys = 30;  ///< of one address in a minute
  static constexpr std::chrono::hours right_key_memory{1};
  static constexpr std::size_t max_right_keys = 10'000;  ///< addresses

  /// What the client has used this day, as it is stored.
  json add_use(const std::string& client, const budget& reserved, const token_usage& used) {
    const std::lock_guard<std::mutex> lock(mutex_);
    enter_minute();
    enter_day();
    for (auto* spent : {&minute_use_[client], &day_use_[client]}) {
      spent->tokens += used.prompt() + used.output;
      // Less than nothing where more was charged ahead than the CLI tells at last.
      spent->usd = std::max(0.0, spent->usd + used.charge_usd);
    }
    reserved_[client].add(reserved, -1);
    if (reserved_[client].requests <= 0) reserved_.erase(client);
    const auto& today = day_use_[client];
    return json::object({{"day", day_},
                         {"requests", today.requests},
                         {"tokens", today.tokens},
                         {"usd", today.usd}});
  }

  std::chrono::milliseconds enter_minute() {
    using namespace std::chrono;
    const auto now = steady_clock::now().time_since_epoch();
    const auto minute = duration_cast<minutes>(now).count();
    if (minute != minute_) {
      requests_.clear();
      wrong_keys_.clear();
      minute_use_.clear();
      minute_ = minute;
    }
    return ceil<milliseconds>(minutes(minute + 1) - now);
  }

  std::chrono::milliseconds enter_day() {
    using namespace std::chrono;
    const auto now = system_clock::now().time_since_epoch();
    const auto day = duration_cast<hours>(now).count() / 24;
    if (day != day_) day_use_.clear();
    day_ = day;
    return ceil<milliseconds>(hours((day + 1) * 24) - now);
  }

  /// The count of that name. More names than can be remembered are counted as one, but for those
  /// that are known.
  template <class Name>
  static int& counter(std::map<Name, int>& counts,
                      const typename std::map<Name, int>::key_type& name,
                      const typename std::map<Name, int>::key_type& others) {
    const auto known = counts.find(name);
    if (known != counts.end()) return known->second;
    return counts[counts.size() < max_kept_names ? name : others];
  }

  /// Which amount would be over its limit; nullptr for none. What is not wanted does not count.
  static const char* find_exceeded(const budget& used, const budget& wanted, const budget& most) {
    const auto exceeds = [](auto in_all, auto more, auto limit) {
      return limit > 0 && more > 0 && in_all > limit;
    };
    if (exceeds(used.requests, wanted.requests, most.requests)) return "requests";
    if (exceeds(used.tokens, wanted.tokens, most.tokens)) return "tokens";
    return exceeds(used.usd, wanted.usd, most.usd) ? "US dollars" : nullptr;
  }

  static void refuse_spent(const budget& spent, const budget& held, const budget& wanted,
                           const budget& most, const char* span, std::chrono::milliseconds left) {
    // Requests count when they come. Of the rest some must be left, however little: an answer's use
    // is known at its end.
    budget used = spent;
    used.add({wanted.requests, 1, least_usd});
    const char* what = find_exceeded(used, wanted, most);
    const char* end = " is used up.";
    if (what == nullptr && held.requests > 0) {
      used.add({0, held.tokens + wanted.tokens, held.usd + wanted.usd});
      what = find_exceeded(used, wanted, most);
      end = " may be used up by its requests under way.";
      left = std::min<std::chrono::milliseconds>(left, std::chrono::seconds(5));
    }
    if (what == nullptr) return;
    api_error error(
        error_kind::too_many_requests,
        "This key's budget of " + std::string(what) + " for one " + span + end + " Try again in " +
            std::to_string(std::chrono::ceil<std::chrono::seconds>(left).count()) + " seconds.",
        "budget_exceeded");
    error.retry_after = left;
    throw error;
  }

  const std::shared_ptr<state_store> state_;
  std::mutex write_mutex_;
  std::mutex mutex_;
  std::int64_t minute_ = 0;
  std::int64_t day_ = 0;
  std::map<std::pair<endpoint_group, std::string>, int> requests_;
  std::map<std::string, int> wrong_keys_;
  std::map<std::string, std::chrono::steady_clock::time_point>
      right_keys_;  ///< when an address last showed one
  std::map<std::string, budget> minute_use_;
  std::map<std::string, budget> day_use_;
  std::map<std::string, budget> reserved_;  ///< for requests under way
};

/// The 429 of the reference wrapper, with the true time.
inline api_error rate_limit_error(std::chrono::milliseconds reset) {
  const auto seconds = std::chrono::ceil<std::chrono::seconds>(reset).count();
  api_error error(error_kind::too_many_requests,
                  "Rate limit exceeded. Try again in " + std::to_string(seconds) + " seconds.");
  error.retry_after = reset;
  return error;
}

/// True for an address in the network: `10.0.0.0/8`, `fd00::/8`, or a single address.
inline bool is_in_network(const std::string& address, const std::string& network) {
  const auto slash = std::min(network.find('/'), network.size());
  const auto base = network.substr(0, slash);
  std::array<unsigned char, sizeof(in6_addr)> left{};
  std::array<unsigned char, sizeof(in6_addr)> right{};
  for (const int family : {AF_INET, AF_INET6}) {
    if (::inet_pton(family, address.c_str(), left.data()) != 1) continue;
    if (::inet_pton(family, base.c_str(), right.data()) != 1) return false;
    const int all = family == AF_INET ? 32 : 128;
    const int bits = slash == network.size()
                         ? all
                         : text::try_number<int>(network.substr(slash + 1)).value_or(-1);
    if (bits < 0 || bits > all) return false;
    for (int i = 0; i < bits; ++i) {
      const auto byte = static_cast<std::size_t>(i / 8);
      if (((left[byte] ^ right[byte]) >> (7 - i % 8) & 1) != 0) return false;
    }
    return true;
  }
  return address == base;  // `unix`, for one
}

/// Whom a request comes from: the peer, or whom a trusted proxy names as its own peer.
inline std::string client_address(const std::string& peer, std::string_view forwarded_for,
                                  const std::vector<std::string>& trusted) {
  const auto is_trusted = [&](const std::string& address) {
    return std::any_of(trusted.begin(), trusted.end(),
                       [&](const std::string& network) { return is_in_network(address, network); });
  };
  auto address = peer;
  auto hops = text::split(forwarded_for, ',');
  while (is_trusted(address) && !hops.empty() && is_ip_literal(hops.back())) {
    address = hops.back();
    hops.pop_back();
  }
  return address;
}

//================================================================================================
// [29] metrics - what has happened, in figures for a monitor and in a line for the log
// uses: text, json_access, options, events, cli_protocol, pool, store, engine | thread-safe
//================================================================================================

/// One request: what it was, and what came of it.
struct request_figures {
  std::string id;
  std::string method;
  std::string path;
  std::string route;    ///< as the table of routes has it; empty: none
  std::string dialect;  ///< empty: the model was not asked
  std::string model;
  std::string account;  ///< that pays for the answer, see `auth_method`
  std::string client;   ///< `key-1` is the first key's holder; empty without a key
  std::string address;
  int status = 0;
  const char* ending = nullptr;  ///< of a stream: `done`, `failed` or `client left`
  steady_time started = std::chrono::steady_clock::now();
  std::optional<steady_time> first_token;
  steady_time ended;
  token_usage usage;
  turn_facts facts;
  std::string failure;  ///< the error's code, else its kind
};

/// The same while the request is under way, with what only the proxy needs.
struct request_record : request_figures {
  std::string client_id;  ///< see `client_names`
  budget reserved;        ///< see `limiter::reserve`
  std::string reservation;
  bool upstream_failed = false;
  int upstream_status = 0;
  std::string claude_required;  ///< the API wants this Claude Code for the model

  /// Takes in what comes of the answer.
  void note(const event& what) {
    if (std::holds_alternative<block_delta>(what) && !first_token) {
      first_token = std::chrono::steady_clock::now();
    }
    if (const auto* failed = std::get_if<turn_failed>(&what)) note_failure(failed->error);
  }

  void note_failure(const api_error& error) {
    failure = word_for(error);
    upstream_failed = error.is_upstream;
    upstream_status = http_status(error.kind);
    claude_required = error.is_upstream ? required_claude(error.message) : std::string();
  }
};

inline double seconds_between(steady_time from, steady_time to) {
  return std::chrono::duration<double>(to - from).count();
}

/// `req_1 POST /v1/chat/completions 200 812 ms, first token 310 ms, model sonnet, …`
inline std::string render_log_line(const request_figures& record) {
  const auto ms = [&](steady_time until) {
    return std::to_string(
               std::chrono::duration_cast<std::chrono::milliseconds>(until - record.started)
                   .count()) +
           " ms";
  };
  std::string line = record.id + " " + record.method + " " + record.path + " " +
                     std::to_string(record.status) + " " + ms(record.ended);
  if (record.ending != nullptr) line += std::string(", stream ") + record.ending;
  if (!record.failure.empty()) line += ", " + record.failure;
  if (!record.model.empty()) line += ", model " + record.model;
  if (record.facts.on_fallback) line += ", billed to " + record.account;
  if (record.first_token) line += ", first token " + ms(*record.first_token);
  if (record.usage.total() > 0) {
    line += ", tokens " + std::to_string(record.usage.prompt()) + " in " +
            std::to_string(record.usage.output) + " out";
  }
  if (record.usage.cost_usd) line += ", cost " + dump(json(*record.usage.cost_usd)) + " USD";
  const auto origin = name_of(record.facts.origin);
  if (!origin.empty()) line += ", process " + std::string(origin);
  if (record.facts.retries > 0) line += ", retries " + std::to_string(record.facts.retries);
  if (!record.client.empty()) line += ", client " + record.client;
  return line + ", from " + record.address;
}

/// The same for programs.
inline json render_log_fields(const request_figures& record) {
  json fields = json::object({{"id", record.id},
                              {"method", record.method},
                              {"path", record.path},
                              {"status", record.status},
                              {"seconds", seconds_between(record.started, record.ended)},
                              {"address", record.address}});
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) fields[name] = value;
  };
  add("client", record.client);
  add("dialect", record.dialect);
  add("model", record.model);
  add("error", record.failure);
  add("stream", record.ending == nullptr ? "" : record.ending);
  add("process", std::string(name_of(record.facts.origin)));
  if (record.dialect.empty()) return fields;
  add("account", record.account);
  if (record.first_token) {
    fields["first_token_seconds"] = seconds_between(record.started, *record.first_token);
  }
  fields["queue_seconds"] = std::chrono::duration<double>(record.facts.queued).count();
  fields["messages_rewound"] = record.facts.rewound;
  fields["messages_replayed"] = record.facts.replayed;
  fields["retries"] = record.facts.retries;
  fields["input_tokens"] = record.usage.input;
  fields["output_tokens"] = record.usage.output;
  fields["cache_read_tokens"] = record.usage.cache_read;
  fields["cache_write_tokens"] = record.usage.cache_write;
  if (record.usage.cost_usd) fields["cost_usd"] = *record.usage.cost_usd;
  return fields;
}

/// Text for Prometheus, figure by figure.
/// https://prometheus.io/docs/instrumenting/exposition_formats/
class exposition {
 public:
  using labels = std::vector<std::pair<std::string_view, std::string>>;

  void begin(std::string_view name, std::string_view type, std::string_view help) {
    name_ = std::string("claude_openai_") + std::string(name);
    text_ += "# HELP " + name_ + " " + std::string(help) + "\n# TYPE " + name_ + " " +
             std::string(type) + "\n";
  }

  void add(const labels& named, double value, std::string_view suffix = {}) {
    text_ += name_ + std::string(suffix);
    for (std::size_t i = 0; i < named.size(); ++i) {
      text_ += (i == 0 ? "{" : ",") + std::string(named[i].first) + "=\"";
      for (const char c : named[i].second) {
        if (c == '\\' || c == '"') text_ += '\\';
        text_ += c == '\n' ? std::string("\\n") : std::string(1, c);
      }
      text_ += '"';
    }
    text_ += (named.empty() ? " " : "} ") + number(value) + "\n";
  }

  /// A figure that has one value; a counter if its name ends in `_total`.
  template <typename Number>
  void one(std::string_view name, std::string_view help, Number value) {
    begin(name, text::ends_with(name, "_total") ? "counter" : "gauge", help);
    add({}, static_cast<double>(value));
  }

  /// The same with a value for each value of a label.
  template <typename Pairs>
  void each(std::string_view name, std::string_view help, std::string_view label,
            const Pairs& values) {
    begin(name, text::ends_with(name, "_total") ? "counter" : "gauge", help);
    for (const auto& [key, value] : values) add({{label, key}}, value);
  }

  const std::string& text() const { return text_; }

  static std::string number(double value) {
    const bool whole = std::floor(value) == value && std::abs(value) < 1e15;
    return whole ? std::to_string(static_cast<std::int64_t>(value)) : dump(json(value));
  }

 private:
  std::string name_;
  std::string text_;
};

/// How often a value was how large.
class histogram {
 public:
  explicit histogram(std::vector<double> bounds = {})
      : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

  void add(double value) {
    const auto bound = std::lower_bound(bounds_.begin(), bounds_.end(), value);
    ++counts_[static_cast<std::size_t>(bound - bounds_.begin())];
    sum_ += value;
  }

  void render(exposition& out, exposition::labels labels) const {
    double total = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      total += counts_[i];
      auto with_bound = labels;
      with_bound.emplace_back("le", i < bounds_.size() ? exposition::number(bounds_[i]) : "+Inf");
      out.add(with_bound, total, "_bucket");
    }
    out.add(labels, sum_, "_sum");
    out.add(labels, total, "_count");
  }

 private:
  std::vector<double> bounds_;
  std::vector<double> counts_;
  double sum_ = 0;
};

/// What of the proxy's state goes into its figures.
struct gauges {
  process_counts processes;
  std::size_t sessions = 0;
  std::string cli_version;
  std::vector<usage_window> windows = {};
  std::optional<bool> store_usable = {};  ///< nullopt without a store
};

/// `{"object":"usage","by":…,"data":[…],"total":{…}}`
inline json render_usage(const std::string& by, std::int64_t from,
                         const std::vector<usage_row>& rows) {
  usage_row all;
  const auto render = [](const usage_row& row) {
    json shown = json::object({{"answers", row.answers}});
    for (std::size_t i = 0; i < token_kinds.size(); ++i) {
      shown[std::string(token_kinds[i]) + "_tokens"] = row.tokens[i];
    }
    const auto prompt = row.tokens[0] + row.tokens[2] + row.tokens[3];
    shown["cache_share"] =
        prompt > 0 ? static_cast<double>(row.tokens[2]) / static_cast<double>(prompt) : 0;
    shown["cost_usd"] = row.usd;
    return shown;
  };
  json data = json::array();
  for (const auto& row : rows) {
    data.push_back(json::object({{by.c_str(), row.key}}));
    data.back().update(render(row));
    all.answers += row.answers;
    all.usd += row.usd;
    for (std::size_t i = 0; i < token_kinds.size(); ++i) all.tokens[i] += row.tokens[i];
  }
  const std::chrono::system_clock::time_point since{std::chrono::hours(from)};
  return json::object({{"object", "usage"},
                       {"by", by},
                       {"from", text::iso_time(since)},
                       {"data", data},
                       {"total", render(all)}});
}

/// Sums up the requests, and what they have used in a store.
class metrics {
 public:
  explicit metrics(std::shared_ptr<state_store> state = std::make_shared<state_store>())
      : state_(std::move(state)) {}

  /// A request has begun; `finish` must follow.
  void begin() { ++in_flight_; }

  void finish(const request_record& record) {
    --in_flight_;
    std::unique_lock<std::mutex> lock(mutex_);
    const auto model = known_model(record.model);
    add_figures(record, model);
    const auto& used = record.usage;
    if (used.total() == 0) return;
    usage_row row{now_ms() / ms_per_hour, record.client, model, record.dialect, record.account, 1};
    row.tokens = {used.input, used.output, used.cache_read, used.cache_write};
    row.usd = used.charge_usd;
    for (std::size_t i = 0; i < token_kinds.size(); ++i) {
      tokens_[{model, token_kinds[i]}] += static_cast<double>(row.tokens[i]);
    }
    lock.unlock();  // the disk may be slow
    state_->add_usage(row);
  }

  /// A request that was refused before anything else was done for it.
  void reject(const std::string& reason) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++rejected_[reason];
  }

  std::string render(const gauges& now) const {
    exposition out;
    const std::lock_guard<std::mutex> lock(mutex_);
    render_requests(out);
    render_use(out);
    render_processes(out, now);
    render_windows(out, now.windows);
    out.one("sessions", "Sessions that are kept.", now.sessions);
    if (now.store_usable) {
      out.one("store_usable", "Whether state is stored: 1, or 0 when it is lost.",
              *now.store_usable);
    }
    out.one("uptime_seconds", "Time since the proxy began.",
            std::floor(seconds_between(begun_, std::chrono::steady_clock::now())));
    out.begin("build_info", "gauge", "Versions of the proxy and of claude.");
    out.add({{"version", CLAUDE_OPENAI_VERSION}, {"cli_version", now.cli_version}}, 1);
    return out.text();
  }

 private:
  void add_figures(const request_record& record, const std::string& model) {
    ++requests_[{record.route, record.dialect, model, std::to_string(record.status)}];
    if (record.dialect.empty()) return;
    if (record.first_token) {
      first_tokens_.try_emplace(record.dialect, first_token_bounds())
          .first->second.add(seconds_between(record.started, *record.first_token));
    }
    durations_.try_emplace(record.dialect, duration_bounds())
        .first->second.add(seconds_between(record.started, record.ended));
    sums_.charged_usd += record.usage.charge_usd;
    sums_.cost_usd = std::max(sums_.cost_usd, sums_.charged_usd);  // a counter never falls
    sums_.retries += record.facts.retries;
    const double other = record.facts.on_fallback ? 1 : 0;
    sums_.fallbacks += other;
    sums_.fallback_usd += other * record.usage.charge_usd;
    sums_.rewound += static_cast<double>(record.facts.rewound);
    sums_.replayed += static_cast<double>(record.facts.replayed);
    if (record.failure == "processes_busy") ++rejected_["queue_full"];
    if (record.upstream_failed) ++upstream_errors_[std::to_string(record.upstream_status)];
    const auto origin = name_of(record.facts.origin);
    if (origin.empty()) return;
    ++turns_[std::string(origin)];
    queue_waits_.add(std::chrono::duration<double>(record.facts.queued).count());
  }

  using tally = std::map<std::string, double>;

  struct totals {
    double charged_usd = 0;
    double cost_usd = 0;
    double retries = 0;
    double fallbacks = 0;
    double fallback_usd = 0;
    double rewound = 0;
    double replayed = 0;
  };

  /// Clients may make up any number of names.
  static constexpr std::size_t max_models = 50;

  static std::vector<double> first_token_bounds() {
    return {0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
  }
  static std::vector<double> duration_bounds() {
    return {0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};
  }

  std::string known_model(const std::string& model) {
    if (models_.size() >= max_models && models_.count(model) == 0) return "other";
    models_.insert(model);
    return model;
  }

  void render_requests(exposition& out) const {
    out.begin("requests_total", "counter", "Requests that were answered.");
    for (const auto& [key, count] : requests_) {
      const auto& [route, dialect, model, status] = key;
      out.add({{"route", route}, {"dialect", dialect}, {"model", model}, {"status", status}},
              count);
    }
    out.one("requests_in_flight", "Requests that are being answered.", in_flight_.load());
    out.each("rejected_total", "Requests that were refused, by reason.", "reason", rejected_);
    out.begin("time_to_first_token_seconds", "histogram", "Time to an answer's first token.");
    for (const auto& [dialect, times] : first_tokens_) times.render(out, {{"dialect", dialect}});
    out.begin("request_duration_seconds", "histogram", "Time to an answer's end.");
    for (const auto& [dialect, times] : durations_) times.render(out, {{"dialect", dialect}});
  }

  void render_use(exposition& out) const {
    out.begin("tokens_total", "counter", "Tokens, by model and kind.");
    for (const auto& [key, count] : tokens_) {
      out.add({{"model", key.first}, {"kind", key.second}}, count);
    }
    out.one("cost_usd_total", "What the answers cost: as the CLI tells it, or by the list price.",
            sums_.cost_usd);
    out.each("upstream_errors_total", "Answers that failed behind the proxy.", "status",
             upstream_errors_);
    out.one("upstream_retries_total", "Times that the CLI asked the API again.", sums_.retries);
    out.one("fallback_answers_total", "Answers of the other account, while the plan was used up.",
            sums_.fallbacks);
    out.one("fallback_cost_usd_total", "What these cost.", sums_.fallback_usd);
    out.each("turns_total", "Answers, by the process that gave them.", "process", turns_);
    out.one("messages_rewound_total",
            "Users' messages that a process took back to serve another conversation.",
            sums_.rewound);
    out.one("messages_replayed_total", "Messages of a history that a process was given.",
            sums_.replayed);
  }

  void render_processes(exposition& out, const gauges& now) const {
    const auto& counts = now.processes;
    const std::array<std::pair<const char*, int>, 7> states = {{
        {"starting", counts.spare - counts.warm},
        {"spare", counts.warm},
        {"busy", counts.busy},
        {"parked", counts.parked},
        {"rewinding", counts.rewinding},
        {"idle", counts.idle - counts.parked - counts.rewinding},
        {"stopping", counts.stopping},
    }};
    out.each("processes", "Processes of claude, by state.", "state", states);
    out.one("processes_max", "The most processes at once.", counts.maximum);
    out.one("processes_started_total", "Processes of claude that were started.", counts.started);
    out.one("queue_depth", "Requests that wait for a process.", counts.queued);
    out.begin("queue_wait_seconds", "histogram", "Waits for a process.");
    queue_waits_.render(out, {});
  }

  static void render_windows(exposition& out, const std::vector<usage_window>& windows) {
    out.begin("subscription_limit", "gauge", "1 for each limit of a subscription, by its state.");
    for (const auto& window : windows) {
      const auto* state = window.extra_usage ? "extra_usage" : window.status.c_str();
      out.add({{"window", window.name}, {"state", state}}, 1);
    }
    out.begin("subscription_utilization_ratio", "gauge", "Used share of a subscription's limit.");
    for (const auto& window : windows) {
      if (window.utilization) out.add({{"window", window.name}}, *window.utilization);
    }
    out.begin("subscription_reset_timestamp_seconds", "gauge", "When that limit begins anew.");
    for (const auto& window : windows) {
      if (window.resets_at > 0) {
        out.add({{"window", window.name}}, static_cast<double>(window.resets_at));
      }
    }
  }

  const std::shared_ptr<state_store> state_;
  const steady_time begun_ = std::chrono::steady_clock::now();
  std::atomic<int> in_flight_{0};
  mutable std::mutex mutex_;
  std::map<std::tuple<std::string, std::string, std::string, std::string>, double> requests_;
  tally rejected_;
  std::map<std::pair<std::string, std::string>, double> tokens_;  ///< by model and kind
  tally turns_;
  tally upstream_errors_;
  std::set<std::string> models_;
  std::map<std::string, histogram> first_tokens_;
  std::map<std::string, histogram> durations_;
  histogram queue_waits_{{0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60}};
  totals sums_;
};

//================================================================================================
// [30] status - what is known of the CLI and its login
// uses: text, json_access, options, events, cli_protocol, cli_command, process, claude_process,
//       pool | thread-safe
//================================================================================================

constexpr std::array<int, 3> oldest_cli = {2, 1, 120};
constexpr const char* login_unread =
    "`claude auth status` has a login, but `claude -p` does not read it, as with --bare; update "
    "claude-openai, or choose another claude (--claude-path) or account (--auth-method)";

/// What was found out about `claude` at the start. Empty members are not known (yet).
struct cli_facts {
  std::string version;
  std::optional<bool> logged_in;
  std::vector<std::string> models;           ///< ids and aliases that the CLI reports
  std::vector<std::string> always_thinking;  ///< those of them whose thinking cannot be turned off
  std::map<std::string, std::string> resolved;         ///< ids by alias
  std::map<std::string, std::string> claude_required;  ///< by model: the API wants this version
  bool has_cache_ttl = true;  ///< a request can choose how long a prompt stays cached
  std::string warning;        ///< why it is not the operator's
  std::string problem;        ///< why no request can be answered, and what to do
  bool too_old = false;       ///< the problem is one that no retry can mend

  /// The id that an alias of the CLI's stands for.
  std::string resolve(const std::string& model) const {
    const auto known = resolved.find(model);
    return known == resolved.end() || known->second.empty() ? model : known->second;
  }
};

/// Holds the facts for all threads.
class status_board {
 public:
  cli_facts get() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return facts_;
  }

  /// What the API wants holds for the version that asked it.
  void set(cli_facts facts) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (facts.version == facts_.version) facts.claude_required.swap(facts_.claude_required);
    facts_ = std::move(facts);
  }

  /// The API wants this version of the CLI for a model; empty: it has answered.
  void note_required(const std::string& model, const std::string& version) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto id = facts_.resolve(model);
    if (version.empty()) facts_.claude_required.erase(id);
    if (!version.empty()) facts_.claude_required[id] = version;
  }

 private:
  mutable std::mutex mutex_;
  cli_facts facts_;
};

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

/// Where the chosen method's credentials come from; names, never values.
inline std::string credential_source(const options& settings) {
  const auto has = [&](const char* name) { return !value_or(settings.environment, name).empty(); };
  const auto first_of = [&](std::initializer_list<const char*> names, const char* otherwise) {
    const auto found = std::find_if(names.begin(), names.end(), has);
    return std::string(found == names.end() ? otherwise : *found);
  };
  switch (resolve_auth(settings)) {
    case auth_method::api_key:
      return first_of({"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"}, "nothing");
    case auth_method::bedrock:
      return first_of({"AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID", "AWS_PROFILE",
                       "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"},
                      "the AWS default chain: shared files, or the machine's role");
    case auth_method::vertex:
      return first_of({"GOOGLE_APPLICATION_CREDENTIALS"},
                      "Google's application default credentials");
    case auth_method::cli:
    case auth_method::detect: break;
  }
  return first_of({"CLAUDE_CODE_OAUTH_TOKEN"}, "the login of `claude`");
}

/// Whose account pays for the answers of the chosen method, in words.
inline std::string payer_of(const options& settings) {
  switch (resolve_auth(settings)) {
    case auth_method::api_key:
      return "an Anthropic API account, not a Claude subscription (for that: --auth-method cli)";
    case auth_method::bedrock: return "an AWS account";
    case auth_method::vertex:
      return "the Google Cloud project " +
             value_or(settings.environment, "ANTHROPIC_VERTEX_PROJECT_ID");
    case auth_method::cli:
    case auth_method::detect: break;
  }
  return "the account of the login: a subscription, or an API account";
}

/// Asks `claude --version`.
inline void inspect_version(const options& settings, const child_guard& guard,
                            const wake_signal& stop, cli_facts& facts) {
  const auto result = run_claude(settings, {"--version"}, guard, std::chrono::seconds(10), stop);
  const auto version = parse_version(result.output);
  if (!version) {
    facts.problem = settings.claude_path + " does not tell its version (" + result.ending + ")";
    return;
  }
  facts.version = text::split(result.output, ' ').front();
  if (*version >= oldest_cli) return;
  facts.too_old = true;
  facts.problem = "claude " + facts.version +
                  " is too old; upgrade to 2.1.120 or later with "
                  "`npm install -g @anthropic-ai/claude-code@latest`";
}

/// Reads models and login out of the CLI's answer to `initialize`.
inline void read_initialize_response(const json& initialize_response, cli_facts& facts) {
  const auto& models = member_of(initialize_response, "models");
  for (std::size_t i = 0; models.is_array() && i < models.size(); ++i) {
    for (const char* name : {"value", "resolvedModel"}) {
      const auto id = string_of(models[i], name);
      if (id.empty() || id == "default") continue;
      facts.models.push_back(id);
      facts.resolved.emplace(string_of(models[i], "value"), string_of(models[i], "resolvedModel"));
      const auto& off = member_of(models[i], "supportsThinkingOff");
      if (off.is_boolean() && !off.get<bool>()) facts.always_thinking.push_back(id);
    }
  }
  const auto& asked = member_of(member_of(initialize_response, question_id), "response");
  const auto& kept = member_of(asked, "effective");
  facts.has_cache_ttl = kept.is_object() && !kept.contains("promptCacheTtl");
  const auto& account = member_of(initialize_response, "account");
  const auto token = string_of(account, "tokenSource");
  const auto provider = string_of(account, "apiProvider");
  facts.logged_in = !string_of(account, "apiKeySource").empty() ||
                    (!token.empty() && token != "none") ||
                    (!provider.empty() && provider != "firstParty");
}

/// What `claude auth status` prints; null where it is no JSON.
inline json ask_login(const options& settings, const child_guard& guard, const wake_signal& stop) {
  constexpr std::chrono::seconds timeout{20};
  return try_parse_json(run_claude(settings, {"auth", "status"}, guard, timeout, stop).output);
}

/// Asks one process for its models and account. It is taken from the pool, so it counts.
inline void inspect_account(const options& settings, pool& processes, const wake_signal& stop,
                            cli_facts& facts) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::vector<pollfd> entries;
  pool::ticket place(processes, {{settings.default_model}, {}});
  std::optional<lease> process;
  while (!process) {
    if (auto taken = place.try_take()) process.emplace(std::move(*taken));
    if (std::chrono::steady_clock::now() >= deadline || stop.is_raised()) return;
    pollfd entry{place.fd(), POLLIN, 0};
    if (!process) ::poll(&entry, 1, 50);
  }
  auto& asked = process->process();
  asked.request_capabilities();
  const auto& told = asked.initialize_response();
  while (member_of(told, question_id).is_null()) {
    if (std::chrono::steady_clock::now() >= deadline || stop.is_raised()) break;
    if (const auto failure = asked.pop()) {
      if (const auto* failed = std::get_if<turn_failed>(&*failure)) {
        facts.problem = failed->error.message;
        processes.programs().reject(asked.program(), facts.problem);
      }
      return;
    }
    entries.clear();
    asked.add_poll_entries(entries);
    ::poll(entries.data(), static_cast<nfds_t>(entries.size()), 50);
    asked.pump();
  }
  if (told.is_null()) return;
  read_initialize_response(told, facts);
  if (facts.logged_in == false) facts.problem = not_logged_in;
}

/// The shape of the reference wrapper's, without secrets: names of variables, never values.
inline json render_auth_status(const options& settings, const cli_facts& facts) {
  auto errors = missing_credentials(settings);
  if (!facts.problem.empty()) errors.push_back(facts.problem);
  json names = json::array();
  for (const auto& variable : child_environment(settings)) names.push_back(variable.first);
  const auto method = name_of(resolve_auth(settings));
  json status =
      json::object({{"method", method},
                    {"valid", errors.empty() && facts.logged_in.value_or(true)},
                    {"errors", errors},
                    {"billed_to", payer_of(settings)},
                    {"config", json::object({{"claude_path", settings.claude_path},
                                             {"claude_version", facts.version},
                                             {"credentials", credential_source(settings)}})}});
  if (settings.fallback) status["fallback"] = name_of(*settings.fallback);
  if (!facts.warning.empty()) status["config"]["warning"] = facts.warning;
  const json auth =
      json::object({{"method", method}, {"status", status}, {"environment_variables", names}});
  const bool keyed = !settings.api_keys.empty();
  const char* given = keyed ? "environment" : "none";  // by a flag too: there are but three words
  const json server = json::object({{"api_key_required", keyed},
                                    {"api_key_source", settings.made_key ? "runtime" : given},
                                    {"version", CLAUDE_OPENAI_VERSION}});
  return json::object({{"claude_code_auth", auth}, {"server_info", server}});
}

/// A word for the problem, which tells nothing of this machine.
inline std::string problem_code(const cli_facts& facts) {
  if (facts.problem.empty()) return "no_free_process";
  if (facts.too_old) return "claude_too_old";
  if (facts.logged_in == false) return "not_logged_in";
  return facts.version.empty() ? "claude_not_usable" : "claude_failed";
}

/// Healthy means that a request would be answered, and that state is stored where there is a store
/// (`store`: see `state_store::trouble`). Without `details` only that, and the problem's code: its
/// text names paths and what `claude` printed.
inline json render_health(const process_counts& counts, const cli_facts& facts, bool details,
                          bool demo = false, const std::optional<std::string>& store = {}) {
  constexpr std::chrono::seconds max_stall{30};
  auto problem = facts.problem;
  if (problem.empty() && counts.stalled > max_stall) {
    problem = std::to_string(counts.queued) + " requests wait, and none has got a process for " +
              std::to_string(counts.stalled.count() / 1000) + " s";
  }
  std::string code = problem.empty() ? "store_unavailable" : problem_code(facts);
  if (problem.empty() && !store.value_or("").empty()) {
    problem = "the store cannot be used: " + *store;
  }
  json whole = json::object(
      {{"status", problem.empty() ? "healthy" : "degraded"}, {"service", "claude-openai"}});
  if (!problem.empty()) whole["code"] = std::move(code);
  if (demo) whole["demo"] = true;
  if (!details) return whole;
  whole.update(json::object({{"processes", json::object({{"spare", counts.spare},
                                                         {"warm", counts.warm},
                                                         {"busy", counts.busy},
                                                         {"idle", counts.idle},
                                                         {"rewinding", counts.rewinding},
                                                         {"stopping", counts.stopping},
                                                         {"maximum", counts.maximum}})},
                             {"queued", counts.queued}}));
  if (store) whole["store"] = store->empty() ? "ok" : "unusable";
  if (!problem.empty()) whole["problem"] = problem;
  if (!facts.warning.empty()) whole["warning"] = facts.warning;
  return whole;
}

//================================================================================================
// [31] http_head - the head and the body's framing of a request, held against RFC 9112
// uses: text, errors | pure
//================================================================================================
//
// Where two programs disagree about where a request ends, one client's bytes become another's
// request. So whatever is doubtful is refused here, before httplib sees a byte of it: older
// versions of it skip broken lines, decode percent signs in values and take bad chunks for the end.

/// One request without its body.
struct request_head {
  std::string method;
  std::string target;     ///< path and query
  std::string authority;  ///< whom the client means to ask: `Host`, or what stands in the target
  bool http_1_0 = false;
  bool closes = false;  ///< the client wants no other request on this connection
  bool expects_continue = false;
  bool chunked = false;
  std::optional<std::uint64_t> content_length;
  std::vector<std::pair<std::string, std::string>> fields;

  bool has_body() const { return chunked || content_length.value_or(0) > 0; }
};

namespace http_head {

inline api_error broken(const std::string& what) {
  return {error_kind::invalid_request, "this is not a valid HTTP request: " + what};
}

inline bool is_token(std::string_view word) {
  return !word.empty() && text::is_alphanumeric(word, "!#$%&'*+-.^_`|~");
}

/// False when this is the beginning of no request: of TLS, for one, which would wait for an answer.
inline bool begins_well(std::string_view bytes) {
  constexpr std::size_t max_method = 32;
  const auto line = bytes.substr(0, bytes.find('\r'));
  const auto method = line.substr(0, std::min(line.find(' '), max_method + 1));
  const bool whole = line.size() < bytes.size();
  if (whole && line.find("HTTP/1.") == line.npos) return false;
  return method.empty() ? bytes.empty() : method.size() <= max_method && is_token(method);
}

/// Visible characters, blanks and bytes above ASCII: no line end and no NUL hides in a value.
inline bool is_field_text(std::string_view value) {
  return std::all_of(value.begin(), value.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return c == '\t' || (byte >= 0x20 && byte != 0x7f);
  });
}

/// True when one of the list's words is this one.
inline bool lists(std::string_view value, std::string_view word) {
  const auto words = text::split(value, ',');
  return std::any_of(words.begin(), words.end(),
                     [&](const std::string& one) { return text::to_lower(one) == word; });
}

inline void parse_request_line(std::string_view line, request_head& head) {
  const auto first = line.find(' ');
  const auto last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) throw broken("the request line");
  head.method = line.substr(0, first);
  auto target = line.substr(first + 1, last - first - 1);
  const auto version = line.substr(last + 1);
  const bool visible = std::all_of(target.begin(), target.end(), [](char c) {
    return static_cast<unsigned char>(c) > 0x20 && c != 0x7f;
  });
  if (!is_token(head.method) || target.empty() || !visible) throw broken("the request line");
  if (version != "HTTP/1.1" && version != "HTTP/1.0") throw broken("its version");
  head.http_1_0 = version == "HTTP/1.0";
  const auto scheme = target.find("://");
  if (scheme < target.find_first_of("/?")) {  // the form for proxies
    target.remove_prefix(scheme + 3);
    const auto end = std::min(target.find_first_of("/?"), target.size());
    head.authority = target.substr(0, end);
    target.remove_prefix(end);
  }
  const bool whole = target.empty() || target.front() == '?';
  head.target = (whole ? "/" : "") + std::string(target);
  // A base URL with a last slash makes `//v1/models` of `/v1/models`.
  const auto twice = [](char left, char right) { return left == '/' && right == '/'; };
  const auto query = std::find(head.target.begin(), head.target.end(), '?');
  head.target.erase(std::unique(head.target.begin(), query, twice), query);
  if (head.target.front() != '/' && head.target != "*") throw broken("the path");
}

inline void parse_length(const std::string& value, request_head& head) {
  const auto length = text::try_number<std::uint64_t>(value);
  if (head.content_length || !length || value.size() > 18) throw broken("Content-Length");
  head.content_length = length;
}

inline void parse_field(std::string_view line, request_head& head) {
  const auto colon = std::min(line.find(':'), line.size());
  const auto name = line.substr(0, colon);
  if (colon == line.size() || !is_token(name)) throw broken("a header line");
  const std::string value(text::trim(line.substr(colon + 1)));
  if (!is_field_text(value)) throw broken("the header " + std::string(name));
  const auto lower = text::to_lower(name);
  if (lower == "content-length") parse_length(value, head);
  if (lower == "transfer-encoding") {
    if (head.chunked || text::to_lower(value) != "chunked") throw broken("Transfer-Encoding");
    head.chunked = true;
  }
  if (lower == "connection" && lists(value, "close")) head.closes = true;
  if (lower == "expect") head.expects_continue = text::to_lower(value) == "100-continue";
  head.fields.emplace_back(name, value);
}

/// Where programs take the first of two fields or the last, there must be no two.
inline void check_fields(request_head& head) {
  std::vector<std::string> hosts;
  std::vector<std::string> names;
  for (const auto& [name, value] : head.fields) {
    names.push_back(text::to_lower(name));
    if (names.back() == "host") hosts.push_back(value);
  }
  for (const char* name : {"host", "origin", "authorization", "x-api-key", "api-key"}) {
    if (std::count(names.begin(), names.end(), name) > 1) throw broken(std::string("two ") + name);
  }
  if (hosts.empty() && !head.http_1_0) throw broken("no Host");
  if (head.authority.empty() && !hosts.empty()) head.authority = hosts.front();
}

/// A request's head, up to and with its empty line. Throws an `api_error` for whatever RFC 9112
/// does not allow, or allows for compatibility only.
inline request_head parse(std::string_view bytes) {
  request_head head;
  for (bool first = true; !bytes.empty(); first = false) {
    const auto end = bytes.find("\r\n");
    if (end == std::string_view::npos) throw broken("a line without an end");
    const auto line = bytes.substr(0, end);
    bytes.remove_prefix(end + 2);
    if (line.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos) {
      throw broken("a line end or a NUL within a line");
    }
    if (first) {
      parse_request_line(line, head);
    } else if (!line.empty()) {
      parse_field(line, head);
    }
  }
  if (head.chunked && head.content_length) throw broken("its length is told in two ways");
  if (head.chunked && head.http_1_0) throw broken("HTTP/1.0 knows no chunks");
  check_fields(head);
  return head;
}

}  // namespace http_head

/// Takes the chunked coding off a body (RFC 9112, 7.1). Extensions and trailers are skipped.
class chunk_decoder {
 public:
  bool done() const { return state_ == state::done; }

  /// Appends what the bytes hold of the body, and returns how many of them are this body's. Throws
  /// an `api_error`.
  std::size_t feed(std::string_view bytes, std::string& body) {
    std::size_t used = 0;
    while (used < bytes.size() && !done()) {
      if (state_ == state::data) {
        const auto count = std::min<std::uint64_t>(left_, bytes.size() - used);
        body.append(bytes.substr(used, static_cast<std::size_t>(count)));
        used += static_cast<std::size_t>(count);
        left_ -= count;
        if (left_ == 0) state_ = state::data_end;
      } else if (take(bytes[used++])) {
        end_line();
      }
    }
    return used;
  }

 private:
  enum class state { size, data, data_end, trailer, done };

  static constexpr std::size_t max_line = 4096;

  /// One more byte of a line. True when the line is complete.
  bool take(char c) {
    line_ += c;
    if (line_.size() > max_line) throw http_head::broken("an endless line in a chunked body");
    const bool ended = line_.size() >= 2 && line_.compare(line_.size() - 2, 2, "\r\n") == 0;
    if (!ended && c == '\n') throw http_head::broken("a bare line feed in a chunked body");
    if (state_ == state::data_end && line_.size() == 2 && !ended) {
      throw http_head::broken("a chunk is longer than it said");
    }
    return ended;
  }

  void end_line() {
    const auto line = std::exchange(line_, {});
    const auto length = line.size() - 2;
    if (state_ == state::data_end) {
      state_ = state::size;
    } else if (state_ == state::trailer) {
      const bool field = http_head::is_token(std::string_view(line).substr(0, line.find(':')));
      trailers_ += line.size();
      if (trailers_ > 2 * max_line || (length > 0 && !field)) {
        throw http_head::broken("what follows a chunked body");
      }
      if (length == 0) state_ = state::done;
    } else {
      left_ = parse_size(std::string_view(line).substr(0, std::min(line.find(';'), length)));
      state_ = left_ == 0 ? state::trailer : state::data;
    }
  }

  static std::uint64_t parse_size(std::string_view digits) {
    std::uint64_t size = 0;
    digits = digits.substr(0, digits.find_last_not_of(" \t") + 1);
    const auto* end = digits.data() + digits.size();
    const bool whole = std::from_chars(digits.data(), end, size, 16).ptr == end;
    if (digits.empty() || digits.size() > 15 || !whole) {
      throw http_head::broken("the size of a chunk");
    }
    return size;
  }

  state state_ = state::size;
  std::string line_;
  std::uint64_t left_ = 0;
  std::size_t trailers_ = 0;
};

//================================================================================================
// [32] transport - listening sockets, and the bytes of a connection, in the clear or through TLS
// uses: text, process, guard | POSIX sockets and OpenSSL
//================================================================================================

/// A stream socket that no child inherits: close-on-exec from the start where the system can, since
/// another thread may start a child between two calls.
inline unique_fd make_socket(int family) {
#ifdef SOCK_CLOEXEC
  return unique_fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
#else
  unique_fd socket(::socket(family, SOCK_STREAM, 0));
  ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  return socket;
#endif
}

/// The next connection of a listening socket, close-on-exec as by `make_socket`. Empty, with errno
/// set, when there is none.
inline unique_fd accept_from(int listener) {
#ifdef SOCK_CLOEXEC
  return unique_fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
#else
  unique_fd socket(::accept(listener, nullptr, nullptr));
  if (socket) ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  return socket;
#endif
}

/// Why one cannot listen, and what to do.
inline std::system_error listen_failure(std::error_code failed, const std::string& host, int port) {
  const auto what =
      failed == std::errc::address_in_use
          ? "--port: " + std::to_string(port) + " is taken; choose another"
      : failed == std::errc::permission_denied
          ? std::string("--port: only root may listen below 1024; choose a higher one")
          : "--host: this machine has no address " + host + "; choose one that it has";
  return {failed, what};
}

/// Listening sockets of a host and port; port 0 takes any. Throws `std::system_error`.
inline std::vector<unique_fd> listen_on(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int failed = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (failed != 0) {
    throw listen_failure(std::make_error_code(std::errc::address_not_available), host, port);
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  std::vector<unique_fd> listeners;
  for (const auto* address = found; address != nullptr; address = address->ai_next) {
    auto socket = make_socket(address->ai_family);
    if (!socket) continue;
    const int on = 1;
    ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ai_family == AF_INET6) {
      ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    }
    if (::bind(socket.get(), address->ai_addr, address->ai_addrlen) != 0 ||
        ::listen(socket.get(), 1024) != 0) {
      const bool other_may_do = errno == EADDRNOTAVAIL && address->ai_next != nullptr;
      if (other_may_do) continue;  // `localhost` where IPv6 is off
      throw listen_failure(last_system_error(), host, port);
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

/// A listening socket at a path, for this user alone (mode 0600). One that a proxy left behind is
/// replaced, a living one's and other files are not. Throws `std::system_error`.
inline unique_fd listen_at(const std::string& path) {
  sockaddr_un address{};
  const auto problem = "--unix-socket: " + path + " cannot be made; choose another path";
  if (path.size() >= sizeof address.sun_path) {
    throw std::system_error(std::make_error_code(std::errc::filename_too_long), problem);
  }
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, path.size());
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  struct stat found {};
  if (::lstat(path.c_str(), &found) == 0 && S_ISSOCK(found.st_mode)) {
    const auto probe = make_socket(AF_UNIX);
    if (::connect(probe.get(), generic, sizeof address) != 0 && errno == ECONNREFUSED) {
      ::unlink(path.c_str());
    }
  }
  auto listener = make_socket(AF_UNIX);
  const auto old_mask = ::umask(0177);
  const bool bound = ::bind(listener.get(), generic, sizeof address) == 0;
  const auto failure = last_system_error();
  ::umask(old_mask);
  if (!bound) throw std::system_error(failure, problem);
  if (::listen(listener.get(), 1024) != 0) throw std::system_error(last_system_error(), problem);
  set_nonblocking(listener.get());
  return listener;
}

/// The numeric address of the other end; `unix` for a unix socket's.
inline std::string peer_address(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  std::array<char, NI_MAXHOST> host{};
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::getpeername(socket, generic, &size) != 0) return {};
  if (address.ss_family == AF_UNIX) return "unix";
  if (::getnameinfo(generic, size, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) != 0) {
    return {};
  }
  const std::string_view name = host.data();
  constexpr std::string_view mapped = "::ffff:";  // IPv4 through a socket of IPv6
  return std::string(text::starts_with(name, mapped) && name.find('.') != name.npos
                         ? name.substr(mapped.size())
                         : name);
}

constexpr uid_t nobody = ~uid_t{0};  ///< no user has this id

inline peer_user judge_user(std::optional<uid_t> user) {
  if (!user) return peer_user::unknown;
  return *user == ::geteuid() || *user == 0 ? peer_user::own : peer_user::other;
}

#ifdef __linux__
/// One end of a TCP connection, in network order.
struct endpoint {
  sa_family_t family = AF_UNSPEC;
  std::array<std::uint32_t, 4> address{};  ///< the first word alone for IPv4
  in_port_t port = 0;
};

/// `ask` is getpeername or getsockname.
inline endpoint endpoint_of(int socket, int (*ask)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage found{};
  socklen_t size = sizeof found;
  if (ask(socket, reinterpret_cast<sockaddr*>(&found), &size) != 0) return {};
  const auto* v4 = reinterpret_cast<const sockaddr_in*>(&found);
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&found);
  endpoint end{found.ss_family, {}, v4->sin_port};  // both have the port in the same place
  if (found.ss_family == AF_INET6) std::memcpy(end.address.data(), &v6->sin6_addr, 16);
  if (found.ss_family == AF_INET) end.address[0] = v4->sin_addr.s_addr;
  return end;
}

/// The socket at the other end of a TCP connection within this machine.
struct peer_socket {
  enum class search { failed, absent, found };
  search result = search::failed;
  uid_t user = 0;     ///< who made it
  bool held = false;  ///< by a process; of one that was closed the kernel tells root as its user
};

/// Asks the kernel for that one socket, whatever the number of others (sock_diag(7)).
inline peer_socket find_peer_socket(const endpoint& peer, const endpoint& own) {
  const unique_fd kernel(::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  struct {
    nlmsghdr header;
    inet_diag_req_v2 request;
  } question{};
  question.header.nlmsg_len = sizeof question;
  question.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  question.header.nlmsg_flags = NLM_F_REQUEST;
  auto& request = question.request;
  request.sdiag_family = static_cast<std::uint8_t>(peer.family);
  request.sdiag_protocol = IPPROTO_TCP;
  request.idiag_states = ~0U;
  request.id.idiag_cookie[0] = request.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  std::copy(peer.address.begin(), peer.address.end(), request.id.idiag_src);
  std::copy(own.address.begin(), own.address.end(), request.id.idiag_dst);
  request.id.idiag_sport = peer.port;
  request.id.idiag_dport = own.port;
  struct {
    nlmsghdr header;
    inet_diag_msg found;
    std::array<char, 1024> more;
  } reply{};
  if (!kernel || ::send(kernel.get(), &question, sizeof question, 0) < 0) return {};
  const ssize_t size = ::recv(kernel.get(), &reply, sizeof reply, 0);
  if (size < static_cast<ssize_t>(sizeof(nlmsghdr) + sizeof(int))) return {};
  if (reply.header.nlmsg_type == NLMSG_ERROR) {
    nlmsgerr problem{};
    std::memcpy(&problem.error, &reply.found, sizeof problem.error);
    return {problem.error == -ENOENT ? peer_socket::search::absent : peer_socket::search::failed};
  }
  if (size < static_cast<ssize_t>(sizeof(nlmsghdr) + sizeof(inet_diag_msg))) return {};
  // Where no such connection is, a socket that listens at the peer's port is found.
  if (reply.found.idiag_state == TCP_LISTEN) return {peer_socket::search::absent};
  return {peer_socket::search::found, reply.found.idiag_uid, reply.found.idiag_inode != 0};
}

/// The same from the kernel's table as text (proc(5)), for a system that does not let us ask.
inline peer_socket find_peer_in_table(const endpoint& peer, const endpoint& own) {
  const auto print = [](const endpoint& end) {
    std::string printed = ": ";
    std::array<char, 16> piece{};
    for (std::size_t i = 0; i < (end.family == AF_INET6 ? 4 : 1); ++i) {
      std::snprintf(piece.data(), piece.size(), "%08X", end.address[i]);
      printed += piece.data();
    }
    std::snprintf(piece.data(), piece.size(), ":%04X ", ntohs(end.port));
    return printed + piece.data();
  };
  const auto bytes = read_all(unique_fd(
      ::open(peer.family == AF_INET6 ? "/proc/net/tcp6" : "/proc/net/tcp", O_RDONLY | O_CLOEXEC)));
  if (bytes.empty()) return {};
  const auto found = bytes.find(print(peer) + print(own).substr(2));
  if (found == std::string::npos) return {peer_socket::search::absent};
  // sl local remote state queues timer retransmits uid timeout inode
  const auto columns = text::split(bytes.substr(found, bytes.find('\n', found) - found), ' ');
  if (columns.size() < 10) return {};
  return {peer_socket::search::found, text::try_number<uid_t>(columns[7]).value_or(~0U),
          columns[9] != "0"};
}
#endif

/// Whose process is at the other end; `nobody` for one that is gone. Nullopt for a connection from
/// another machine or network namespace, and on systems that do not tell.
inline std::optional<uid_t> uid_of_peer(int socket) {
#ifdef __linux__
  const auto peer = endpoint_of(socket, ::getpeername);
  if (peer.family == AF_UNSPEC) return nobody;  // it is gone
  if (peer.family == AF_UNIX) {
    ucred holder{};
    socklen_t size = sizeof holder;
    const bool known = ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &holder, &size) == 0;
    if (!known) return std::nullopt;
    return holder.uid;
  }
  const auto own = endpoint_of(socket, ::getsockname);
  auto found = find_peer_socket(peer, own);
  // A kernel without tcp_diag says "absent" of every socket.
  if (found.result != peer_socket::search::found) found = find_peer_in_table(peer, own);
  if (found.result == peer_socket::search::found) return found.held ? found.user : nobody;
  // A socket that is not here is either in another network namespace, or was here and is closed.
  tcp_info state{};
  socklen_t size = sizeof state;
  const bool open = ::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &state, &size) == 0 &&
                    state.tcpi_state == TCP_ESTABLISHED;
  if (open) return std::nullopt;
  return nobody;
#else
  uid_t user = 0;
  gid_t group = 0;
  const bool known = peer_address(socket) == "unix" && ::getpeereid(socket, &user, &group) == 0;
  if (!known) return std::nullopt;
  return user;
#endif
}

/// What came of moving bytes: some moved, there will be no more, or poll(2) has to be asked.
enum class io_result { moved, ended, wait };

#ifdef CPPHTTPLIB_OPENSSL_SUPPORT

/// A certificate and its key, for all connections.
class tls_context {
 public:
  /// Files in PEM, the certificate with its chain. Throws `std::runtime_error`.
  tls_context(const std::string& certificate, const std::string& key)
      : context_(::SSL_CTX_new(::TLS_server_method()), ::SSL_CTX_free) {
    if (!context_) throw std::runtime_error("TLS cannot be set up");
    auto* raw = context_.get();
    ::SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
    ::SSL_CTX_set_mode(raw, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    ::SSL_CTX_set_options(raw, SSL_OP_NO_RENEGOTIATION);
    // A pass phrase would be asked for at the terminal, in the middle of the work.
    ::SSL_CTX_set_default_passwd_cb(raw, [](char*, int, int, void*) { return 0; });
    ::ERR_clear_error();
    if (::SSL_CTX_use_certificate_chain_file(raw, certificate.c_str()) != 1) {
      throw std::runtime_error("--tls-cert: no certificate in " + certificate);
    }
    if (::SSL_CTX_use_PrivateKey_file(raw, key.c_str(), SSL_FILETYPE_PEM) != 1) {
      throw std::runtime_error("--tls-key: no private key in " + key +
                               ", or not the certificate's");
    }
  }

  SSL_CTX* get() const { return context_.get(); }

 private:
  std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context_;
};

/// The server's end of TLS on a socket. Never blocks; shakes hands with the first bytes.
class tls_session {
 public:
  tls_session(const tls_context& context, int socket)
      : session_(::SSL_new(context.get()), ::SSL_free) {
    if (!session_) throw std::runtime_error("no memory for a TLS connection");
    ::SSL_set_fd(session_.get(), socket);
    ::SSL_set_accept_state(session_.get());
  }

  /// True when bytes are there that poll(2) does not tell of.
  bool has_pending() const { return ::SSL_pending(session_.get()) > 0; }

  io_result receive(char* bytes, std::size_t size, std::size_t& count, short& wanted) {
    ::ERR_clear_error();
    return judge(::SSL_read_ex(session_.get(), bytes, size, &count), wanted);
  }

  io_result send(const char* bytes, std::size_t size, std::size_t& count, short& wanted) {
    ::ERR_clear_error();
    return judge(::SSL_write_ex(session_.get(), bytes, size, &count), wanted);
  }

  void shut_down() {
    if (::SSL_is_init_finished(session_.get()) == 1) ::SSL_shutdown(session_.get());
  }

 private:
  io_result judge(int done, short& wanted) const {
    if (done == 1) return io_result::moved;
    const int reason = ::SSL_get_error(session_.get(), done);
    wanted = reason == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN;
    const bool waits = reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE;
    return waits ? io_result::wait : io_result::ended;
  }

  std::unique_ptr<SSL, void (*)(SSL*)> session_;
};

#else

/// This build has no TLS: nobody can make one, so nobody uses a session.
class tls_context {
 public:
  tls_context(const std::string&, const std::string&) {
    throw std::runtime_error("this build has no TLS: it needs CPPHTTPLIB_OPENSSL_SUPPORT");
  }
};

class tls_session {
 public:
  tls_session(const tls_context&, int) {}
  bool has_pending() const { return false; }
  io_result receive(char*, std::size_t, std::size_t&, short&) { return io_result::ended; }
  io_result send(const char*, std::size_t, std::size_t&, short&) { return io_result::ended; }
  void shut_down() {}
};

#endif

/// The bytes of one connection. Never blocks.
class channel {
 public:
  /// `tls` null: in the clear.
  channel(unique_fd socket, const tls_context* tls) : socket_(std::move(socket)) {
    const int on = 1;
    ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    set_nonblocking(socket_.get());
    if (tls != nullptr) session_.emplace(*tls, socket_.get());
  }

  int fd() const { return socket_.get(); }

  /// Waits until bytes may be moved again after `io_result::wait`. False when they may not.
  bool wait_wanted(int timeout_ms, int other = -1) const {
    return wait(wanted_, timeout_ms, other);
  }

  /// Waits for bytes to read, or for the events given; no longer than until `other` is readable.
  bool wait(short events, int timeout_ms, int other = -1) const {
    if (session_ && session_->has_pending() && (events & POLLIN) != 0) return true;
    std::array<pollfd, 2> fds{{{socket_.get(), events, 0}, {other, POLLIN, 0}}};
    int ready = 0;
    do {
      ready = ::poll(fds.data(), fds.size(), timeout_ms);
    } while (ready < 0 && errno == EINTR);
    return ready > 0 && fds[0].revents != 0;
  }

  io_result receive(char* bytes, std::size_t size, std::size_t& count) {
    if (session_) return session_->receive(bytes, size, count, wanted_);
    wanted_ = POLLIN;
    return judge(::recv(socket_.get(), bytes, size, 0), count);
  }

  io_result send(const char* bytes, std::size_t size, std::size_t& count) {
    if (session_) return session_->send(bytes, size, count, wanted_);
    wanted_ = POLLOUT;
    return judge(::send(socket_.get(), bytes, size, 0), count);
  }

  void shut_down() {
    if (session_) session_->shut_down();
    ::shutdown(socket_.get(), SHUT_WR);
  }

 private:
  static io_result judge(ssize_t moved, std::size_t& count) {
    count = moved > 0 ? static_cast<std::size_t>(moved) : 0;
    if (moved > 0) return io_result::moved;
    const bool waits = moved < 0 && (errno == EAGAIN || errno == EINTR);
    return waits ? io_result::wait : io_result::ended;
  }

  unique_fd socket_;
  std::optional<tls_session> session_;
  short wanted_ = POLLIN;
};

//================================================================================================
// [33] page - the page at /, and the settings of clients that it shows
// uses: text | pure
//================================================================================================

/// What makes a client use this proxy; {url}, {key} and {model} stand for the proxy's. The page and
/// `claude-openai connect` show it, and docs/clients.md says the same.
struct client_recipe {
  const char* name;
  const char* title;
  const char* file;  ///< below the home directory; empty where no file is for this client alone
  const char* settings;
  const char* start;  ///< the command line then; empty for none
};

// Claude Code's own file would turn the proxy's `claude` to the proxy too.
constexpr std::array<client_recipe, 12> client_recipes{{
    {"codex", "Codex", ".codex/config.toml", R"(model = "{model}"
model_provider = "claude"

[model_providers.claude]
name = "Claude"
base_url = "{url}/v1"
env_key = "CLAUDE_OPENAI_KEY"
wire_api = "responses"
)",
     "CLAUDE_OPENAI_KEY={key} codex"},
    {"opencode", "opencode", ".config/opencode/opencode.json", R"({
  "provider": {
    "claude": {
      "npm": "@ai-sdk/openai-compatible",
      "options": { "baseURL": "{url}/v1", "apiKey": "{key}" },
      "models": { "{model}": { "name": "Claude {model}" } }
    }
  }
}
)",
     "opencode run --model claude/{model} \"Say hello\""},
    {"claude", "Claude Code", "", "ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY={key} claude\n", ""},
    {"aider", "aider", ".aider.conf.yml", R"(openai-api-base: {url}/v1
openai-api-key: "{key}"
model: openai/{model}
edit-format: diff
)",
     "aider"},
    {"continue", "Continue", ".continue/config.yaml", R"(name: Claude
version: 1.0.0
schema: v1
models:
  - name: Claude
    provider: openai
    model: {model}
    apiBase: {url}/v1
    apiKey: "{key}"
    roles: [chat, edit, apply]
    capabilities: [tool_use, image_input]
)",
     ""},
    {"cline", "Cline", "", "cline auth -p openai-compatible -k {key} -m {model} -b {url}/v1\n", ""},
    {"zed", "Zed", ".config/zed/settings.json", R"({
  "language_models": {
    "openai_compatible": {
      "Claude": {
        "api_url": "{url}/v1",
        "available_models": [
          {
            "name": "{model}",
            "display_name": "Claude {model}",
            "max_tokens": 200000,
            "max_output_tokens": 32000,
            "capabilities": { "tools": true, "images": true, "parallel_tool_calls": true }
          }
        ]
      }
    }
  }
}
)",
     "CLAUDE_API_KEY={key} zed"},
    {"pi", "pi", ".pi/agent/models.json", R"({
  "providers": {
    "claude": {
      "baseUrl": "{url}/v1",
      "api": "openai-completions",
      "apiKey": "{key}",
      "models": [
        { "id": "{model}", "reasoning": true, "contextWindow": 200000, "maxTokens": 32000 }
      ]
    }
  }
}
)",
     "pi --provider claude --model {model}"},
    {"qwen", "Qwen Code", "",
     "OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key} OPENAI_MODEL={model} qwen --auth-type openai\n",
     ""},
    {"copilot", "Copilot CLI", "",
     "COPILOT_PROVIDER_BASE_URL={url}/v1 COPILOT_PROVIDER_API_KEY={key} COPILOT_MODEL={model} "
     "copilot\n",
     ""},
    {"open-webui", "Open WebUI", "", "OPENAI_API_BASE_URL={url}/v1 OPENAI_API_KEY={key}\n", ""},
    {"env", "Environment", "", R"(export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}
export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY={key}
)",
     ""},
}};

namespace page {

constexpr std::string_view repository = "https://github.com/claude-openai/claude-openai";

/// One document with its style and its script, and nothing to load. `render` fills in what stands
/// in double braces.
constexpr std::string_view document = R"page(<!doctype html>
<html lang="en" data-key-required="{{key_required}}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>claude-openai</title>
<meta name="description" content="claude-openai, a Claude Code OpenAI Wrapper">
<link rel="icon" href="data:,">
<style nonce="{{nonce}}">
:root {
  color-scheme: light dark; accent-color: var(--accent); --paper: light-dark(#fbfaf7, #181714);
  --card: light-dark(#fff, #201f1b); --sunken: light-dark(#f5f3ee, #131210);
  --ink: light-dark(#23211d, #ece9e2); --muted: light-dark(#67625a, #a8a296);
  --line: light-dark(#e5e1d9, #37342e); --accent: light-dark(#a5451f, #ec9a73);
  --tint: light-dark(#f8ece5, #33241c); --good: light-dark(#2b6b47, #82c9a0);
  --warn: light-dark(#855800, #e3b860); --bad: light-dark(#ab2a20, #f4a196);
  --blue: light-dark(#23609f, #93bdf0);
  --mono: ui-monospace, Menlo, Consolas, monospace;
}
* { box-sizing: border-box; min-width: 0; }
[hidden] { display: none !important; }
html { scroll-padding-top: 4.5rem; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: .9375rem/1.6 system-ui, sans-serif; }
h1, h2, h3, h4, h5, h6, p, dl, dd, pre, ul, ol { margin: 0; padding: 0; }
h1, h2 { line-height: 1.2; }
h1 { font-size: clamp(1.8rem, 4vw, 2.6rem); }
h2 { font-size: 1.375rem; }
h3 { font-size: 1em; }
a { color: var(--accent); }
code, pre, .code { font-family: var(--mono); font-size: .875rem !important; }
pre { overflow: auto; }
textarea.code, #prompt { field-sizing: content; }
:focus-visible { outline: 2px solid; outline-offset: -2px; }
.unseen { position: absolute; width: 1px; height: 1px; clip-path: inset(50%);
  overflow: hidden; white-space: nowrap; }
.muted, .comment, .badge, .lede, .quiet, .note, .thoughts, dt, th, nav a, [role="tab"],
section > header p, .message h3 { color: var(--muted); }
.small, label, .addresses p, [role="tab"], #panel .row, .listing .row, .slots, .thoughts {
  font-size: .875rem; }
.copy, .note, .tiles dt, th, .message :is(h3, footer) { font-size: .8125rem; }
.row, .slots, footer { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; }
.bar, #tabs, #bars, tr { border-bottom: 1px solid var(--line); }
section + section, .status div + div, .endpoint + .endpoint, .composer {
  border-top: 1px solid var(--line); }
button:not(.main):hover, nav a:hover { color: var(--accent); }
:is(#draft, #problem, #key-problem):empty { display: none; }
.card { border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
.wide { overflow-x: auto; }

button, input, select, textarea { font: inherit; color: inherit; }
button { padding: .3rem .75rem; border: 1px solid var(--line); border-radius: 7px;
  background: var(--card); cursor: pointer;
  &.main { background: var(--accent); border-color: var(--accent);
    color: light-dark(#fff, #20120b); }
  &.quiet { border-color: transparent; background: none; }
  &.copy { min-width: 4.75rem; padding: .1rem .5rem; }
}
input:not([type="checkbox"]), select, textarea { display: block; width: 100%; resize: vertical;
  padding: .4rem .6rem; border: 1px solid light-dark(#8f897e, #7a746a);
  border-radius: 7px; background: var(--card); }
label { display: grid; align-content: start; gap: .25rem .6rem; }

.bar { position: sticky; top: 0; z-index: 2; background: var(--paper); }
.bar > div, main { padding-inline: max(4vw, 50vw - 38rem); }
.bar > div { display: flex; align-items: center; gap: .25rem 1rem; min-height: 3.5rem; }
#problem { flex-wrap: wrap; padding-block: .5rem; background: var(--tint); }
.brand { display: flex; align-items: center; gap: .6rem; font-weight: 650; white-space: nowrap; }
.brand svg { width: 1.5rem; }
.badge { padding: 0 .5rem; border: 1px solid var(--line); border-radius: 99px;
  font-size: .75rem; font-weight: 500; }
nav { display: flex; margin-left: auto; }
nav a { padding: .3rem .6rem; text-decoration: none; }

section { display: grid; gap: 1.25rem; padding-block: 3.5rem; }
section > header p { margin-top: .4rem; }
.lede { margin-top: .9rem; font-size: 1.125rem; }
.addresses { display: grid; gap: .5rem; max-width: 38rem; margin-top: 1.5rem; }
.addresses p { display: grid; grid-template-columns: 1fr auto; padding: .4rem .5rem .4rem .9rem;
  min-height: 4.05rem; }
.addresses .muted { grid-column: 1 / -1; }
.status { padding: .4rem 1.25rem; align-self: start; }
.status dl > div { display: grid; grid-template-columns: 7.5rem 1fr; padding-block: .6rem; }
.state { font-weight: 600; }
.state::before, .slots li::before, .running .text > :last-child::after,
.running .text:empty::after { content: ""; display: inline-block; }
.state::before { width: .6rem; height: .6rem; margin-right: .5rem; border-radius: 50%;
  background: currentColor; }
.good, .string, .POST { color: var(--good); }
.warn, .literal { color: var(--warn); }
.bad, .DELETE { color: var(--bad); }
.number, .keyword, .GET { color: var(--blue); }

#tabs { min-height: 2.9rem; padding-inline: .9rem; display: flex; overflow-x: auto; }
[role="tab"] { flex: none; padding: .7rem .35rem .5rem; border: 0; border-radius: 0;
  border-bottom: 2px solid transparent; background: none;
  &[aria-selected="true"] { color: var(--ink); border-color: var(--accent); }
}
#panel { min-height: 20.2rem; padding: .75rem .75rem 1rem 1.25rem; }
#panel .row, .listing .row, #bars + .row { justify-content: space-between; }
.key { color: var(--accent); }

.playground, .settings, .composer, .log, .turn, .empty, .live, .try, .answer, form {
  display: grid; grid-template-columns: minmax(0, 1fr); align-content: start; gap: .9rem; }
.playground { gap: 1.25rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; }
.chat { display: grid; grid-template-rows: 1fr auto auto; height: min(44rem, 82vh); }
.log { overflow-y: auto; padding: 1.25rem; }
.log, .turn { gap: 1.5rem; }
.empty { padding-top: 3rem; justify-items: center; text-align: center; }
.empty:not(:only-child), .turn:not(:last-child) .again,
.thoughts:has(div:empty) { display: none; }
.message .text { margin-block: .35rem; }
.user .text { width: fit-content; padding: .6rem .9rem; border-radius: 10px;
  background: var(--tint); }
.user .text, .thoughts div, .flow { white-space: pre-wrap; }
img { display: block; max-width: 100%; max-height: 12rem; border-radius: 5px; }
#draft img { height: 2rem; }
#draft button { display: flex; align-items: center; gap: .5rem;
  &::after { content: "×"; }
}
footer { min-height: 2.25rem; }
.running .text::after, .running .text > ::after { width: .5em; height: 1em; margin-left: .15em;
  vertical-align: -.15em; background: var(--accent); }
.failure { margin-top: .5rem; padding: .6rem .9rem; border-left: 3px solid var(--bad); }
.thoughts { margin-top: .4rem; }
.thoughts div, blockquote { margin: 0; padding-left: .9rem; border-left: 2px solid var(--line); }
.composer { padding: .75rem; gap: .6rem; }
#prompt { resize: none; min-height: 4rem; max-height: 11rem; }
.composer .main { margin-left: auto; min-width: 5.5rem; }
#curl { max-height: 18rem; overflow: auto; border-radius: 0; }
.markdown { display: grid; gap: .7rem; }
.markdown :is(h4, h5, h6) { font-size: 1.05rem; }
.markdown :is(ul, ol) { padding-left: 1.5rem; }
.markdown :not(pre) > code { padding: .1em .35em; border-radius: 5px; }
.listing, .failure, .answer pre, .markdown :not(pre) > code { background: var(--sunken); }
.listing, .answer pre { border-radius: 8px; }
.listing .row { padding: .3rem .4rem 0 .9rem; }
.listing pre, .answer pre { padding: .5rem .9rem .8rem; }
table { border-collapse: collapse; }
th, td { padding: .45rem 1rem .45rem 0; text-align: left; }

.live > .card { padding: 1rem 1.25rem; }
.live > .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  padding: 0; overflow: hidden; }
.tiles > div { padding: .9rem 1.25rem; box-shadow: 0 0 0 1px var(--line); }
.tiles dd:not(.note) { font-size: 1.375rem; font-weight: 600; line-height: 1.4; }
#bars { display: flex; align-items: end; gap: 2px; height: 5.5rem; margin-block: .75rem .3rem; }
#bars i { flex: 1; border-radius: 2px 2px 0 0; background: var(--accent); }
#slots { margin-block: .5rem; gap: 0; }
.slots { gap: .2rem 1.1rem; list-style: none; }
.slots li::before { width: .8rem; height: .8rem; margin-right: .4rem;
  border: 1px solid var(--line); border-radius: 3px; background: var(--state); }
.busy { --state: var(--accent); } .parked { --state: var(--warn); }
.idle { --state: var(--blue); } .spare { --state: var(--good); }
.starting, .rewinding { --state: var(--line); }
.live table { width: 100%; }
#sessions td:first-child { max-width: 9rem; overflow: hidden; text-overflow: ellipsis; }

.group + .group { margin-top: 1.75rem; } .group h3 { margin-bottom: .6rem; }
summary { cursor: pointer; }
.endpoint > summary { display: grid; grid-template-columns: 4.25rem minmax(0, 20rem) 1fr auto;
  gap: 0 .75rem; align-items: baseline; padding: .55rem 1rem; border-radius: 10px;
  &::after { content: "+"; color: var(--muted); }
  &:hover { background: var(--sunken); }
}
.endpoint[open] > summary::after { content: "–"; }
.method { font: 600 .75rem var(--mono); }
.try { padding: .25rem 1rem 1.25rem; }
.answer pre, #usage .wide { max-height: 26rem; }

dialog { width: min(26rem, 100vw - 2rem); padding: 1.5rem; color: inherit; }

@media (width < 44rem) {
  .bar { position: static; }
  .bar > div { flex-wrap: wrap; padding-block: .5rem; }
  nav { order: 1; width: 100%; margin-left: -.4rem; }
  nav a { padding-inline: .4rem; }
  #theme { margin-left: auto; }
  .endpoint > summary { grid-template-columns: 3.1rem 1fr auto; gap: 0 .6rem; }
  .endpoint .muted { grid-area: 2 / 2; }
  #sessions tr > :is(:nth-child(3), :nth-child(4)) { display: none; }
}
@media (width >= 60rem) {
  .playground { grid-template-columns: 16rem minmax(0, 1fr); }
  .hero { grid-template-columns: 1fr 25rem; gap: 4rem; }
}
@media (width >= 76rem) {
  section:not(.hero) { grid-template-columns: 13rem minmax(0, 1fr); gap: 1.5rem; }
}
@media (prefers-reduced-motion: no-preference) {
  .running .text::after, .running .text > ::after { animation: blink 1s steps(2) infinite; }
  @keyframes blink { to { opacity: 0; } }
}
</style>
<script nonce="{{nonce}}">
  // Before the first paint, so that no other theme flashes up.
  try {
    document.documentElement.style.colorScheme = localStorage.getItem('claude-openai-theme') ?? '';
  } catch { /* storage is forbidden: follow the system */ }
</script>
</head>
<body>
<header class="bar"><div>
<span class="brand">
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20" aria-hidden="true">
<rect width="20" height="20" rx="5" fill="#b04a22"/>
<path d="m6 6 4 4-4 4m5 0h4" fill="none" stroke="#fff" stroke-width="1.8"/>
</svg>
claude-openai <span class="badge">v{{version}}</span>
<span class="badge warn" id="demo" title="A stand-in answers, not Claude" hidden>Demo</span>
</span>
<nav aria-label="On this page">
<a href="#quick-start">Quick Start</a><a href="#playground">Playground</a>
<a href="#live">Live</a><a href="#endpoints">API</a>
<a href="{{repository}}" target="_blank" rel="noreferrer">Source</a>
</nav>
<button id="theme" class="quiet small">Theme: auto</button>
</div><div id="problem" role="alert"></div>
</header>

<main>
<section class="hero">
<div>
<h1>Claude Code for every OpenAI and Anthropic client</h1>
<p class="lede">This server makes the <code>claude</code> CLI answer them. Point yours at one of
these addresses.</p>
<div class="addresses">
<p class="card"><span class="muted">OpenAI</span> <code id="openai-url"></code></p>
<p class="card"><span class="muted">Anthropic</span> <code id="anthropic-url"></code></p>
</div>
<noscript><p class="lede">This page needs JavaScript; the server does not.</p></noscript>
</div>
<div class="status card"><h2 class="unseen">Status</h2><dl>
<div><dt>Connection</dt><dd><span id="connection" class="state" role="status">…</span></dd></div>
<div><dt>Authentication</dt><dd id="auth-method">…</dd></div>
<div><dt>Claude CLI</dt><dd id="cli-version">…</dd></div>
<div><dt>Default model</dt><dd id="default-model">…</dd></div>
<div><dt>Uptime</dt><dd id="uptime">…</dd></div>
<div><dt>Client key</dt><dd class="row"><span id="key-state">…</span>
<button id="key-change" class="copy" hidden>Enter key</button></dd></div>
</dl></div></section>

<section id="quick-start">
<header><h2>Quick Start</h2>
<p>With this server's address and model, ready to paste.</p></header>
<div class="card"><div role="tablist" aria-label="Clients" id="tabs"></div>
<div id="panel" role="tabpanel" aria-labelledby="client">
<div class="row"><span class="muted" id="client"></span></div>
<pre id="snippet" tabindex="0"></pre>
</div></div></section>

<section id="playground">
<header><h2>Playground</h2>
<p>A chat through <code>/v1/chat/completions</code>.</p></header>
<div class="playground"><div class="settings" id="settings">
<label>Chat <select id="chats"></select></label>
<div class="row">
<button class="copy" id="restart">New chat</button>
<button class="copy" id="delete-chat">Delete</button>
<button class="copy" id="delete-chats">Delete all</button>
</div>
<p class="muted small" id="kept" role="status">Chats are kept in this browser only.</p>
<label>Model <select id="model"><option>sonnet</option></select></label>
<label>System prompt
<textarea id="system" rows="4" placeholder="You are a helpful assistant."></textarea></label>
<div class="pair">
<label>Temperature
<input id="temperature" type="number" min="0" max="2" step="0.1" placeholder="default">
</label>
<label>Effort <select id="effort">
<option value="">default<option>none<option>minimal<option>low<option>medium
<option>high<option>xhigh<option>max
</select></label></div>
<label class="row"><input id="stream" type="checkbox" checked> Streaming</label>
<div>
<label class="row"><input id="tools" type="checkbox" aria-describedby="tools-note">
Claude Code's tools</label>
<p id="tools-note" class="muted small">They work on the server's machine, as far as its
operator allows.</p>
</div></div>
<div class="chat card">
<div class="log" id="log" role="log" aria-label="Conversation" aria-live="off" tabindex="0">
<div class="empty" id="empty">
<p class="muted">Nothing said yet. Try one of these, or write your own.</p></div></div>
<div class="listing" id="curl" hidden></div>
<form class="composer" id="composer">
<div class="row" id="draft"></div><textarea id="prompt" rows="2" aria-label="Your message"
placeholder="Message (Enter sends, Shift+Enter breaks)"></textarea>
<div class="row">
<input type="file" id="files" multiple hidden accept="image/*,.pdf">
<button type="button" class="quiet small" id="attach">Add image or PDF</button>
<button type="button" class="quiet small" id="as-curl" aria-expanded="false">As
curl</button>
<button class="main" id="send">Send</button>
</div>
</form>
</div></div></section>

<section id="live">
<header><h2>Live</h2>
<p id="live-note"></p></header>
<div class="live">
<dl class="tiles card" id="tiles"></dl>
<div class="card">
<h3>Processes <span class="muted" id="process-count"></span></h3>
<ul class="slots" id="slots" aria-hidden="true"></ul>
<ul class="slots" id="legend"></ul>
</div>
<div class="card" id="chart">
<h3>Requests, last ten minutes</h3>
<div id="bars" role="img"></div>
<p class="row muted small"><span>10 min ago</span> <span id="bars-most"></span>
<span>now</span></p>
</div>
<div class="card">
<h3>Sessions <span class="muted" id="session-count"></span></h3>
<p class="muted small" id="no-sessions">None yet. Requests with a <code>session_id</code> make
one.</p>
<div id="sessions"></div></div></div></section>

<section id="usage" hidden>
<header><h2>Usage</h2>
<p>What answers have used, by days of UTC.</p></header>
<div class="live">
<div class="pair"><label>Time <select id="usage-days">
<option>today<option>7 days<option>30 days<option>90 days
</select></label>
<label>By <select id="usage-by">
<option>Model<option>Day<option>Key<option>Dialect<option>Account</select></label>
</div>
<dl class="tiles card" id="usage-tiles"></dl>
<div class="card" id="usage-table"></div>
</div></section>

<section id="endpoints">
<header><h2>API Endpoints</h2>
<p>Open one to try it. Each also works without the <code>/v1</code>.</p></header>
<div id="explorer"></div></section>
</main>

<dialog id="key-dialog" class="card" aria-label="Client key">
<form id="key-form">
<h2>This server wants a client key</h2>
<p class="muted small" id="key-hint">Set by the operator as API_KEY; kept in this tab only.</p>
<label>Client key
<input id="key" type="password" autocomplete="off" spellcheck="false" required
aria-describedby="key-hint key-problem"></label>
<p id="key-problem" class="state bad small" role="alert"></p>
<div class="row">
<button type="button" class="quiet" id="key-skip">Not now</button>
<button class="main">Use key</button>
</div>
</form>
</dialog>
<p id="announcer" class="unseen" role="status"></p>
<script type="module" nonce="{{nonce}}">
// ---- small things ----

const $ = (id) => document.getElementById(id);
const on = (id, event, listener) => $(id).addEventListener(event, listener);
const timer = (begun = performance.now()) => () => performance.now() - begun;
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A new `tag.class`. Names that begin with `on` are listeners; strings become text, never HTML. */
function make(kind, ...children) {
  const [tag, ...classes] = kind.split('.');
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(' ');
  const attributes = children[0]?.constructor === Object ? children.shift() : {};
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const button = (kind, label, onclick, attributes) =>
  make(`button${kind}`, { type: 'button', onclick, ...attributes }, label);
const muted = (text) => make('span.muted', text);
const rowOf = (...children) => make('div.row', ...children);
const pre = (kind, ...children) => make(`pre${kind}`, { tabindex: 0 }, ...children);
const tell = (id, ...content) => $(id).replaceChildren(...content);

const announce = (text) => tell('announcer', text); // to a screen reader

/** What an action gives, or undefined where it throws, as storage may. */
function attempt(action) {
  try {
    return action();
  } catch {
    return undefined;
  }
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without https a browser gives the clipboard to pages of localhost alone.
  const field = make('textarea.unseen');
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand('copy');
  field.remove();
  if (!copied) throw new Error('forbidden');
}

const copyButton = (what, textOf, label = 'Copy') =>
  button('.copy', label, async ({ target }) => {
    target.textContent = await copy(textOf()).then(() => 'Copied', () => 'Failed');
    target.focus();
    announce(`${what}: ${target.textContent}`);
    await sleep(1500);
    target.textContent = label;
  }, { 'aria-label': what });

/** The text as nodes, with those of `nodesOf` for each match. */
function matched(text, pattern, nodesOf) {
  const nodes = [];
  let end = 0;
  for (const { 0: whole, index, groups } of text.matchAll(pattern)) {
    nodes.push(text.slice(end, index), ...nodesOf(groups, whole));
    end = index + whole.length;
  }
  return [...nodes, text.slice(end)];
}

const tokens = new RegExp([
  String.raw`(?<comment>^(?:#|//) .*$)`,
  String.raw`(?<key>"(?:[^"\\]|\\.)*"(?=:))`,
  String.raw`(?<string>"(?:[^"\\\n]|\\.)*"|'[^']*')`,
  String.raw`(?<number>-?\b\d[\d.eE+-]*)`,
  String.raw`\b(?<literal>true|false|null)\b`,
  String.raw`\b(?<keyword>from|import|for|in|const|await|of|new|export|curl)\b`,
].join('|'), 'gm');

const coloured = (text) => (text.length > 200_000 ? [text]
  : matched(text, tokens, (groups, whole) =>
    [make(`span.${Object.keys(groups).find((name) => groups[name])}`, whole)]));

const pretty = (value) => JSON.stringify(value, null, 2);
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 }).format;
const dollars = (cost) => `$${cost > 0 && cost < 0.01 ? cost.toPrecision(2) : cost.toFixed(2)}`;
const span = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

function longSpan(seconds) {
  const [minutes, hours] = [60, 3600].map((unit) => Math.floor(seconds / unit));
  if (!hours) return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

// ---- theme ----

const root = document.documentElement;
const theme = root.style;
const showTheme = () => tell('theme', `Theme: ${theme.colorScheme || 'auto'}`);
on('theme', 'click', () => {
  theme.colorScheme = { light: 'dark', dark: '' }[theme.colorScheme] ?? 'light';
  attempt(() => localStorage.setItem('claude-openai-theme', theme.colorScheme));
  showTheme();
});
showTheme();
document.querySelector('[rel="icon"]').href =
  `data:image/svg+xml,${encodeURIComponent(document.querySelector('svg').outerHTML)}`;

// ---- requests and the client key ----

const url = location.origin;
const keyed = root.dataset.keyRequired === 'true';
const json = { 'Content-Type': 'application/json' };
let key = attempt(() => sessionStorage.getItem('claude-openai-key')) ?? '';

const mayAsk = () => !keyed || key;

function askForKey(problem = '') {
  tell('key-problem', problem);
  if (!$('key-dialog').open) $('key-dialog').showModal();
}

function useKey(given) {
  key = given;
  attempt(() => sessionStorage.setItem('claude-openai-key', given));
  showKeyState();
  showEverything();
}

function showKeyState() {
  tell('key-state', !keyed ? 'None needed' : key ? 'In use' : 'Needed');
  tell('key-change', key ? 'Forget key' : 'Enter key');
  $('key-change').hidden = !keyed;
}

function send(path, { headers, ...options } = {}, shown = key) {
  const all = shown ? { ...headers, Authorization: `Bearer ${shown}` } : headers;
  return fetch(path, { cache: 'no-store', ...options, headers: all });
}

/** Sends with the key. A 401 may be the account's; only a refused key is asked for again. */
async function request(path, options) {
  const used = key;
  const response = await send(path, options);
  if (response.status !== 401 || !keyed) return response;
  const again = await send('/v1/models', {}, used);
  if (again.status === 401 && used === key) {
    if (used) useKey('');
    askForKey(used && 'The server does not take this key any more.');
  }
  return response;
}

async function problemOf(response) {
  const text = await response.text();
  return attempt(() => JSON.parse(text).error.message) ?? (text || response.statusText);
}

async function ask(path) {
  const response = await request(path);
  if (!response.ok) throw new Error(await problemOf(response));
  return response.json();
}

on('key-form', 'submit', async (event) => {
  event.preventDefault();
  const given = $('key').value.trim();
  const { status } = await send('/v1/models', {}, given).catch(() => ({}));
  if (status !== 200) {
    return askForKey(status === 401 ? 'The server does not know this key.' : 'No answer.');
  }
  $('key').value = '';
  $('key-dialog').close();
  return useKey(given);
});
on('key-skip', 'click', () => $('key-dialog').close());
on('key-change', 'click', () => (key ? useKey('') : askForKey()));

const isStream = ({ headers }) => /^text\/event-stream/.test(headers.get('content-type'));

async function* eventsOf(response) {
  const source = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await source.read();
    if (done) return;
    const frames = (rest + value).split('\n\n');
    rest = frames.pop();
    for (const frame of frames) {
      const [, data] = /^data: ?(.*)$/m.exec(frame) ?? [];
      if (data) yield data;
    }
  }
}

/** The request as a line for the shell. The key stays out of it. */
function curlOf({ method = 'POST', path, body }) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const parts = [`curl ${method === 'GET' ? '' : `-X ${method} `}${quoted(url + path)}`];
  if (keyed) parts.push('-H "Authorization: Bearer $API_KEY"');
  if (body) parts.push(`-H 'Content-Type: application/json'`, `-d ${quoted(body)}`);
  return parts.join(' \\\n  ');
}

// ---- status ----

let model = 'sonnet';
const methods = { cli: 'Claude login of the CLI', api_key: 'Anthropic API key',
  bedrock: 'Amazon Bedrock', vertex: 'Google Vertex AI' };
const install = 'npm install -g @anthropic-ai/claude-code@latest';
const remedies = { not_logged_in: 'claude auth login', claude_too_old: install,
  claude_not_usable: install, claude_failed: 'claude-openai doctor' }; // by the code of /health

function showProblem(text, command) {
  if (known.problem === text) return; // it is a live region
  known.problem = text;
  tell('problem', text);
  if (command) {
    $('problem').append(make('code', command), copyButton('Copy command', () => command));
  }
}

async function showHealth() {
  const health = await ask('/health').catch(() => undefined);
  const { code = '', problem = code.replaceAll('_', ' '), demo } =
    health ?? { problem: 'The server does not answer.' };
  const [kind, text] = !health ? ['bad', 'No answer']
    : code ? ['warn', 'Degraded'] : ['good', 'Connected'];
  $('connection').className = `state ${kind}`;
  if ($('connection').textContent !== text) tell('connection', text); // a live region, too
  $('demo').hidden = !demo;
  $('usage').hidden = !health?.store;
  showProblem(problem, remedies[code]);
  return health;
}

async function showAccount() {
  if (!mayAsk()) {
    const places = ['auth-method', 'cli-version', 'default-model', 'uptime'];
    return places.forEach((id) => tell(id, muted('told with the key')));
  }
  const [{ claude_code_auth: { method, status } }, { data: models }] =
    await Promise.all([ask('/v1/auth/status'), ask('/v1/models')]);
  const version = status.config.claude_version;
  tell('auth-method', /-demo$/.test(version) ? 'None: a demo answers' : methods[method] ?? method);
  tell('cli-version', version || 'not found yet');
  model = models[0].id;
  tell('default-model', make('code', model));
  const chosen = $('model').selectedIndex > 0 ? $('model').value : model;
  tell('model', ...models.map(({ id }) => make('option', id)));
  $('model').value = chosen;
  return showQuickStart();
}

// ---- quick start ----

tell('openai-url', `${url}/v1`);
tell('anthropic-url', url);
for (const id of ['openai-url', 'anthropic-url']) {
  $(id).after(copyButton(`Copy ${id.replace('-', ' ')}`, () => $(id).textContent));
}

/** Of each client: its title, and its settings for the server's address, key and model. */
const recipes = {{recipes}};

function snippets() {
  const word = keyed ? 'YOUR_KEY' : 'none';
  const v1 = `${url}/v1`;
  const python = `model="${model}", messages=[{"role": "user", "content": "Say hello"}]`;
  return {
    curl: curlOf({
      path: '/v1/chat/completions',
      body: `{"model": "${model}",\n    "messages": [{"role": "user", "content": "Say hello"}]}`,
    }),
    'Python openai': `# pip install openai
from openai import OpenAI

client = OpenAI(base_url="${v1}", api_key="${word}")
answer = client.chat.completions.create(
    ${python})
print(answer.choices[0].message.content)`,
    'Python anthropic': `# pip install anthropic
from anthropic import Anthropic

client = Anthropic(base_url="${url}", api_key="${word}")
message = client.messages.create(max_tokens=1000,
    ${python})
print(message.content[0].text)`,
    'Node openai': `// npm install openai
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: '${v1}', apiKey: '${word}' });
const answer = await client.chat.completions.create({
  model: '${model}', messages: [{ role: 'user', content: 'Say hello' }],
});
console.log(answer.choices[0].message.content);`,
    ...Object.fromEntries(recipes.map(([title, text]) => [title,
      text.replaceAll('{url}', url).replaceAll('{key}', word).replaceAll('{model}', model)])),
  };
}

function showQuickStart() {
  const text = snippets()[$('client').textContent];
  if ($('snippet').textContent !== text) tell('snippet', ...coloured(text));
}

const tabs = Object.keys(snippets()).map((name) =>
  button('', name, ({ target }) => selectTab(target), { role: 'tab', 'aria-controls': 'panel' }));

function selectTab(chosen) {
  for (const tab of tabs) {
    tab.ariaSelected = tab === chosen;
    tab.tabIndex = tab === chosen ? 0 : -1;
  }
  tell('client', chosen.textContent);
  showQuickStart();
}

on('tabs', 'keydown', (event) => {
  const at = tabs.indexOf(event.target);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const tab = tabs.at(next % tabs.length);
  selectTab(tab);
  tab.focus();
});
tell('tabs', ...tabs);
$('client').after(copyButton('Copy snippet', () => $('snippet').textContent));
selectTab(tabs[0]);

// ---- Markdown ----
// Builds elements and texts, never HTML: what a model says stays text.

const deepest = 12; // what is nested deeper stays text
const inline = new RegExp([
  String.raw`(?<ticks>\`{1,2})(?<code>[^]{1,2000}?)\k<ticks>(?!\`)`,
  String.raw`\*\*(?=\S)(?<strong>[^]{1,2000}?)(?<=\S)\*\*`,
  String.raw`\*(?=[^\s*])(?<em>[^*]{1,2000})(?<=\S)\*`,
  String.raw`!?\[(?<label>[^\]\n]{1,500})\]\((?<target>[^\s()]{1,2000})\)`,
  String.raw`(?<bare>https?://[^\s<>"'\`()\[\]*]{1,2000})`,
  String.raw`\\(?<escaped>[\\\`*_{}\[\]()#+.!~|-])`,
].join('|'), 'g');

/** A link, where the address is one that a click may open; else the text as it came. */
function linkTo(address, children, text) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return text;
  return make('a', { href: address, target: '_blank', rel: 'noopener noreferrer' }, ...children);
}

function inlineNodes(text, depth = 0) {
  if (depth > deepest) return [text];
  const within = (content) => inlineNodes(content, depth + 1);
  return matched(text, inline, ({ code, strong, em, label, target, bare, escaped }, whole) => {
    if (code) return [make('code', code)];
    if (strong) return [make('strong', ...within(strong))];
    if (em) return [make('em', ...within(em))];
    if (label) return [linkTo(target, within(label), whole)];
    if (!bare) return [escaped];
    const address = bare.replace(/[.,;:!?_]+$/, '');
    return [linkTo(address, [address], address), bare.slice(address.length)];
  });
}

function listing(code, language) {
  return make('div.listing',
    rowOf(muted(language || 'code'), copyButton('Copy code', () => code)),
    pre('', make('code', ...coloured(code))));
}

const patterns = {
  fence: /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/,
  heading: /^ {0,3}(#{1,6})\s+(\S[^]*)?$/,
  quote: /^ {0,3}> ?/,
  item: /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/,
  blank: /^\s*$/,
};
const startsBlock = (line) => Object.values(patterns).some((pattern) => pattern.test(line));
const isDivider = (line = '') => /^(?=.*-)(?=.*\|)[\s|:-]+$/.test(line);

function takeWhile(list, holds) {
  const end = list.findIndex((one) => !holds(one));
  return list.splice(0, end < 0 ? list.length : end);
}

function takeBlock(lines, depth) {
  const isA = (kind) => patterns[kind].test(lines[0]);
  if (isA('fence')) {
    const [, mark, language] = patterns.fence.exec(lines.shift());
    const code = takeWhile(lines, (line) => !line.trim().startsWith(mark));
    lines.shift();
    return listing(code.join('\n'), language);
  }
  if (isA('heading')) {
    const line = lines.shift().trimEnd().replace(/\s#+$/, '');
    const [, marks, text = ''] = patterns.heading.exec(line);
    return make(`h${Math.min(6, marks.length + 3)}`, ...inlineNodes(text));
  }
  if (isA('quote') && depth < deepest) {
    const inside = takeWhile(lines, (line) => patterns.quote.test(line));
    const quoted = inside.map((line) => line.replace(patterns.quote, ''));
    return make('blockquote', ...blocks(quoted, depth + 1));
  }
  if (isA('item') && depth < deepest) return takeList(lines, depth);
  if (lines[0].includes('|') && isDivider(lines[1])) return takeTable(lines);
  const text = [lines.shift(), ...takeWhile(lines, (line) => !startsBlock(line))];
  return make('p', ...inlineNodes(text.join('\n')));
}

function takeList(lines, depth) {
  const [, indent, mark] = patterns.item.exec(lines[0]);
  const ordered = /\d/.test(mark);
  const list = make(ordered ? 'ol' : 'ul', ordered ? { start: parseInt(mark, 10) } : {});
  const margin = new RegExp(`^ {0,${indent.length + mark.length + 1}}`);
  for (;;) {
    const item = patterns.item.exec(lines[0] ?? '');
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== ordered) return list;
    lines.shift();
    const inside = takeWhile(lines, (line) => !line.trim() || line.startsWith(`${indent}  `));
    const made = blocks([item[3], ...inside.map((line) => line.replace(margin, ''))], depth + 1);
    if (made[0]?.tagName === 'P') made.splice(0, 1, ...made[0].childNodes);
    list.append(make('li', ...made));
  }
}

/** Of rows of cells: a node, a text or a list of them; the first row is the head. */
function tableOf(rows) {
  const [head, ...others] = rows.map((cells, at) =>
    make('tr', ...cells.map((cell) => make(at ? 'td' : 'th', ...[cell].flat()))));
  return make('div.wide', { tabindex: 0 },
    make('table', make('thead', head), make('tbody', ...others)));
}

function takeTable(lines) {
  const [head] = lines.splice(0, 2);
  const rows = [head, ...takeWhile(lines, (line) => line.includes('|'))];
  return tableOf(rows.map((line) => line.trim().replace(/^\||\|$/g, '').split('|')
    .map((cell) => inlineNodes(cell.trim()))));
}

function blocks(lines, depth = 0) {
  const made = [];
  while (lines.length) {
    if (patterns.blank.test(lines[0])) lines.shift();
    else made.push(takeBlock(lines, depth));
  }
  return made;
}

// ---- playground ----

/** What is shown; `files` and the turn that is `replaced` are the next message's. */
const chat = { id: 0, turns: [], files: [] };

const nameOf = ({ file }) => file?.filename ?? 'Image';
const shownFile = (part) => (part.file ? make('span.badge', nameOf(part))
  : make('img', { src: part.image_url.url, alt: 'Image' }));
const messageOf = ({ text, files }) => (
  { role: 'user', content: files.length ? [...files, { type: 'text', text }] : text });

function chatBody(turns, asked) {
  const [system, temperature, reasoning_effort] =
    ['system', 'temperature', 'effort'].map((id) => $(id).value.trim());
  return {
    model: $('model').value,
    messages: [
      ...(system ? [{ role: 'system', content: system }] : []),
      ...turns.flatMap((turn) => [messageOf(turn), { role: 'assistant', content: turn.said }]),
      messageOf(asked),
    ],
    ...(temperature && { temperature: Number(temperature) }),
    ...(reasoning_effort && { reasoning_effort }),
    ...($('tools').checked && { enable_tools: true, show_activity: true }),
    ...($('stream').checked && { stream: true, stream_options: { include_usage: true } }),
  };
}

/** Shows the last request of the chat as it would be sent now. */
function showCurl() {
  if ($('curl').hidden) return;
  const asked = chat.turns.at(-1) ?? { text: 'Say hello', files: [] };
  const body = pretty(chatBody(chat.turns.slice(0, -1), asked));
  tell('curl', ...listing(curlOf({ path: '/v1/chat/completions', body }), 'curl').childNodes);
}

class Turn {
  said = '';
  thought = '';
  age = timer();
  shown = make('div.text.markdown');
  thoughts = make('div');
  figures = muted('Waiting for the first token…');
  foot = make('footer', this.figures);
  answer = make('article.message.running',
    make('h3', 'Claude'), make('details.thoughts', make('summary', 'Reasoning'), this.thoughts),
    this.shown, this.foot);

  constructor({ text, files }) {
    Object.assign(this, { text, files });
    this.question = make('article.message.user', make('h3', 'You'),
      make('div.text', ...files.map(shownFile), text));
    this.whole = make('div.turn', this.question, this.answer);
    $('log').append(this.whole);
  }

  add({ content, reasoning_content: thought }) {
    if (!content && !thought) return;
    this.first ??= this.age();
    this.said += content ?? '';
    this.thought += thought ?? '';
    this.planned ??= requestAnimationFrame(() => this.show());
  }

  show() {
    this.planned = undefined;
    const { scrollHeight, scrollTop, clientHeight } = $('log');
    this.thoughts.textContent = this.thought;
    this.shown.replaceChildren(...blocks(this.said.split(/\r?\n/)));
    this.figures.textContent = this.note ?? `First token ${span(this.first)}`;
    if (scrollHeight - scrollTop - clientHeight < 80) scrollToEnd();
  }

  end(why) {
    const { usage, first, account } = this;
    this.close([
      why,
      this.model,
      first && `first token ${span(first)}`,
      `${span(this.age())} in all`,
      usage && `${usage.prompt_tokens} in, ${usage.completion_tokens} out`,
      usage?.cost !== undefined && dollars(usage.cost),
      account && (account === 'cli' ? 'paid by the plan' : `plan used up, paid by ${account}`),
    ].filter(Boolean).join(' · '));
  }

  close(note) {
    this.note = note;
    this.answer.classList.remove('running');
    if (this.said) {
      this.foot.append(copyButton('Copy the answer', () => this.said),
        button('.copy.again', 'Regenerate', () => begin(this, this)));
      this.question.append(button('.copy', 'Edit', () => {
        if ($('prompt').value && !confirm('Discard what is written below?')) return;
        draft(this, this);
        $('prompt').focus();
      }));
    }
    this.show();
  }
}

/** Throws what the server says is wrong. */
async function readAnswer(response, turn) {
  if (!response.ok) throw new Error(`${response.status}: ${await problemOf(response)}`);
  turn.account = response.headers.get('x-claude-account');
  const take = (text) => {
    if (text === '[DONE]') return;
    const { error, model, usage, choices: [choice] = [] } = JSON.parse(text);
    if (error) throw new Error(error.message);
    turn.model = model;
    turn.usage = usage ?? turn.usage;
    turn.reason = choice?.finish_reason ?? turn.reason;
    if (choice) turn.add(choice.delta ?? choice.message);
  };
  if (isStream(response)) {
    for await (const data of eventsOf(response)) take(data);
  } else {
    take(await response.text());
    turn.first = undefined; // all came at once
  }
}

const scrollToEnd = () => $('log').scrollTo(0, 1e9);

/** Asks; the turns from `replaced` on give way to the answer, if there is one. */
async function say(asked, replaced) {
  const before = takeWhile([...chat.turns], (turn) => turn !== replaced);
  const after = chat.turns.slice(before.length);
  after.forEach(({ whole }) => { whole.hidden = true; });
  const turn = new Turn(asked);
  const running = new AbortController();
  chat.running = running;
  tell('send', 'Stop');
  scrollToEnd();
  announce('Claude is answering');
  let why;
  try {
    const body = JSON.stringify(chatBody(before, asked));
    const options = { method: 'POST', headers: json, body, signal: running.signal };
    await readAnswer(await request('/v1/chat/completions', options), turn);
    why = { length: 'cut at the limit', content_filter: 'refused' }[turn.reason];
    announce('Claude has answered');
  } catch (error) {
    why = running.signal.aborted ? 'stopped' : 'failed';
    announce(`${why}: ${error.message}`);
    if (why === 'failed') turn.foot.before(make('p.failure', error.message));
  }
  chat.running = undefined;
  tell('send', 'Send');
  turn.end(why);
  for (const { whole } of after) {
    if (turn.said) whole.remove();
    else whole.hidden = false;
  }
  if (turn.said) {
    chat.turns = [...before, turn];
    keepChat();
  } else if (!$('prompt').value && !chat.files.length) {
    draft(asked, replaced); // what was not answered at all is no part of the conversation
  }
  showCurl();
}

function begin(asked, replaced) {
  if (!chat.running) chat.ended = say(asked, replaced);
}

/** Puts a message into the composer, to take the place of `replaced`. */
function draft({ text, files }, replaced) {
  $('prompt').value = text;
  Object.assign(chat, { files: [...files], replaced });
  showDraft();
}

function showDraft() {
  const chip = (shown, label, drop) => button('.copy', shown,
    () => showDraft(drop()), { 'aria-label': label });
  tell('draft', ...chat.files.map((part, at) =>
    chip(shownFile(part), `Remove ${nameOf(part)}`, () => chat.files.splice(at, 1))));
  if (chat.replaced) {
    $('draft').append(chip('Replaces a message and what follows', 'Cancel the edit', () => {
      chat.replaced = undefined;
    }));
  }
}

async function attach(files) {
  for (const file of files) {
    const reader = new FileReader();
    await new Promise((resolve) => {
      reader.onloadend = resolve;
      reader.readAsDataURL(file);
    });
    chat.files.push(file.type.startsWith('image/')
      ? { type: 'image_url', image_url: { url: reader.result } }
      : { type: 'file', file: { filename: file.name, file_data: reader.result } });
  }
  showDraft();
}

on('attach', 'click', () => $('files').click());
on('files', 'change', async ({ target }) => {
  await attach(target.files);
  target.value = '';
});
on('prompt', 'paste', ({ clipboardData }) => attach(clipboardData.files));
on('composer', 'submit', (event) => {
  event.preventDefault();
  if (chat.running) return chat.running.abort();
  const { files, replaced } = chat;
  const text = $('prompt').value.trim();
  draft({ text: '', files: [] });
  return (text || files.length) && begin({ text, files }, replaced);
});
on('prompt', 'keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!chat.running) $('composer').requestSubmit();
});
on('as-curl', 'click', ({ target }) => {
  $('curl').hidden = !$('curl').hidden;
  target.ariaExpanded = !$('curl').hidden;
  showCurl();
});
on('settings', 'input', showCurl);
$('empty').append(...[
  'In two sentences: what is a reverse proxy?',
  'Show a Python one-liner that reverses a string, and explain it.',
].map((text) => button('', text, () => begin({ text, files: [] }))));

// ---- the chats that the browser keeps ----

const room = 2_000_000; // characters of all chats; browsers give a page 5 million
const keptChats = () =>
  attempt(() => JSON.parse(localStorage.getItem('claude-openai-chats'))) ?? [];

function storeChats(chats) {
  const stored = attempt(() => {
    localStorage.setItem('claude-openai-chats', JSON.stringify(chats));
    return true;
  });
  showChats();
  return stored;
}

/** Keeps this chat as the newest, without its files where they take half the room. */
function keepChat() {
  const sizeOf = (value) => JSON.stringify(value).length;
  let how = 'Kept in this browser only; the oldest chats make room.';
  let turns = chat.turns.map(({ text, files, said, thought, note }) =>
    ({ text, files, said, thought, note }));
  if (sizeOf(turns) > room / 2) {
    how = 'Kept without its files, which are too large.';
    turns = turns.map(({ text, files, ...answer }) => (
      { text: files.map((part) => `[${nameOf(part)}] `).join('') + text, files: [], ...answer }));
  }
  const chats = [{ id: chat.id, turns }, ...keptChats().filter(({ id }) => id !== chat.id)];
  while (sizeOf(chats) > room) chats.pop();
  const kept = chats.length && storeChats(chats);
  tell('kept', kept ? how : 'Not kept: it is too large, or the browser forbids it.');
}

function showChats() {
  const chats = keptChats();
  if (!chats.some(({ id }) => id === chat.id)) chats.unshift({ id: chat.id });
  tell('chats', ...chats.map(({ id, turns }) => make('option', { value: id },
    turns ? turns[0].text.slice(0, 60) || 'Files' : 'New chat')));
  $('chats').value = chat.id;
}

async function openChat(id = Date.now()) {
  chat.running?.abort();
  await chat.ended;
  const { turns = [] } = keptChats().find((one) => one.id === id) ?? {};
  tell('log', $('empty'));
  Object.assign(chat, { id, turns: turns.map((kept) => {
    const turn = Object.assign(new Turn(kept), kept);
    turn.close(kept.note);
    return turn;
  }), replaced: undefined });
  scrollToEnd();
  showDraft();
  showChats();
  showCurl();
}

/** Deletes the chat that is shown, or all. */
async function forget(all) {
  const { id: gone } = chat;
  if (!confirm(all ? 'Delete all chats?' : 'Delete this chat?')) return;
  await openChat();
  storeChats(keptChats().filter(({ id }) => !all && id !== gone));
}

on('restart', 'click', () => openChat().then(() => $('prompt').focus()));
on('chats', 'change', ({ target }) => openChat(Number(target.value)));
on('delete-chat', 'click', () => forget(false));
on('delete-chats', 'click', () => forget(true));
openChat(keptChats()[0]?.id);

// ---- live ----

const barCount = 60;
const barSpan = 10_000;
const samples = []; // of the last ten minutes, oldest first
let metricsThere = true;

function parseMetrics(text) {
  const figures = {};
  const lines = text.matchAll(/^claude_openai_(\w+)(?:{(.*)})? (\S+)/gm);
  for (const [, name, labels = '', value] of lines) {
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, ...pair]) => pair);
    (figures[name] ??= []).push({ labels: Object.fromEntries(pairs), value: Number(value) });
  }
  return figures;
}

const sum = (rows = [], holds = () => true) =>
  rows.reduce((all, { labels, value }) => all + (holds(labels) ? value : 0), 0);

/** What is compared over time: answers alone, for this page itself asks all the time. */
const sampleOf = (figures) => ({
  at: Date.now(),
  answers: sum(figures.requests_total, ({ dialect }) => dialect),
  buckets: figures.time_to_first_token_seconds_bucket ?? [],
});

/** The time within which that part of the answers began, in ms, if there were any. */
function percentile(part, now, before = {}) {
  const limits = [...new Set(now.buckets.map(({ labels }) => labels.le))];
  const [counts, old] = [now, before].map(({ buckets }) =>
    limits.map((limit) => sum(buckets, ({ le }) => le === limit)));
  old.forEach((count, at) => { counts[at] -= count; });
  const wanted = part * (counts.at(-1) ?? 0);
  if (!wanted) return undefined;
  const at = counts.findIndex((count) => count >= wanted);
  const [low, below] = at ? [Number(limits[at - 1]), counts[at - 1]] : [0, 0];
  if (limits[at] === '+Inf') return low * 1000;
  return 1000 * (low + ((limits[at] - low) * (wanted - below)) / (counts[at] - below));
}

const sampleAt = (time) => samples.findLast(({ at }) => at <= time) ?? samples[0];

function drawChart() {
  const start = Date.now() - barCount * barSpan;
  const ends = Array.from({ length: barCount + 1 }, (_, at) => sampleAt(start + at * barSpan));
  ends[barCount] = samples.at(-1);
  const values = ends.slice(1).map((end, at) => end.answers - ends[at].answers);
  const most = Math.max(...values);
  tell('bars', ...values.map(() => make('i')));
  values.forEach((value, at) => {
    $('bars').children[at].style.height = `${most && (100 * value) / most}%`;
  });
  const text = most ? `at most ${most} in 10 s` : 'none since this page was opened';
  $('bars').ariaLabel = `Requests in ten minutes: ${text}`;
  tell('bars-most', text);
}

const showTiles = (id, tiles) => tell(id, ...tiles.map(([name, value, note]) =>
  make('div', make('dt', name), make('dd', value), make('dd.note', note))));

const meanings = {
  spare: 'ready for a new conversation',
  busy: 'answering', idle: 'keeping a conversation', parked: 'waiting for tool results',
  rewinding: '', starting: '',
};

function showProcesses(counts, most) {
  const kinds = Object.keys(meanings);
  const slots = kinds.flatMap((kind) => Array(counts[kind] ?? 0).fill(kind));
  tell('process-count', `${slots.length} of at most ${most}`);
  while (slots.length < most) slots.push('free');
  tell('slots', ...slots.map((kind) => make(`li.${kind}`)));
  tell('legend', ...kinds.map((kind) => make(`li.${kind}`,
    `${counts[kind] ?? 0} ${kind} `, muted(meanings[kind]))));
}

const percent = (part) => `${Math.round(100 * part)}%`;
const inputs = ['input', 'cache_read', 'cache_write'];
const tokensOf = (rows, ...kinds) => sum(rows, ({ kind }) => kinds.includes(kind));
const cachedOf = (rows) =>
  `${percent(tokensOf(rows, 'cache_read') / (tokensOf(rows, ...inputs) || 1))} cached`;

/** The same figures of each model. */
const modelTiles = (rows) => [...new Set(rows.map(({ labels }) => labels.model))].map((model) => {
  const own = rows.filter(({ labels }) => labels.model === model);
  const [taken, given] = [inputs, ['output']].map((kinds) => short(tokensOf(own, ...kinds)));
  return [model, cachedOf(own), `${taken} in, ${given} out`];
});

/** How much of each limit of the plan is used, where that is told, and until when. */
const planTiles = (figures) => (figures.subscription_limit ?? []).map(({ labels }) => {
  const of = (rows) => (rows ?? []).find((row) => row.labels.window === labels.window)?.value;
  const used = of(figures.subscription_utilization_ratio);
  const reset = of(figures.subscription_reset_timestamp_seconds);
  return [labels.window, used === undefined ? 'unknown' : `${percent(used)} used`,
    reset ? `until ${new Date(1000 * reset).toLocaleString()}` : ''];
});

function showFigures(figures) {
  const now = sampleOf(figures);
  if (now.answers < samples.at(-1)?.answers) samples.length = 0; // a restart
  samples.push(now);
  while (samples[0].at < now.at - (barCount + 1) * barSpan) samples.shift();
  const time = (part) => {
    const ms = percentile(part, now, samples[0]) ?? percentile(part, now);
    return ms === undefined ? '–' : span(ms);
  };
  const tokens = figures.tokens_total ?? [];
  const minute = now.answers - sampleAt(now.at - 60_000).answers;
  const other = sum(figures.fallback_answers_total);
  showTiles('tiles', [
    ['Requests', minute, 'in the last minute'],
    // Without the one that asks for these figures.
    ['In flight', sum(figures.requests_in_flight) - 1, `${sum(figures.queue_depth)} queued`],
    ['First token, median', time(0.5), `p95 ${time(0.95)}`],
    ['Tokens in', short(tokensOf(tokens, ...inputs)), cachedOf(tokens)],
    ['Tokens out', short(tokensOf(tokens, 'output')), 'since the start'],
    ...modelTiles(tokens),
    ['Cost', dollars(sum(figures.cost_usd_total)),
      other ? `${other} by the fallback` : 'since the start'],
    ...planTiles(figures),
  ]);
  const counts = figures.processes.map(({ labels, value }) => [labels.state, value]);
  showProcesses(Object.fromEntries(counts), sum(figures.processes_max));
  tell('uptime', longSpan(sum(figures.uptime_seconds)));
  drawChart();
}

/** Shows /metrics; else says why it cannot. */
async function readMetrics() {
  if (!mayAsk()) return 'More is told with the client key.';
  const response = metricsThere && await request('/metrics');
  if (response && response.ok) return showFigures(parseMetrics(await response.text()));
  metricsThere = false; // until the page is loaded again
  tell('uptime', 'not told');
  return 'This server tells no /metrics, only what /health has.';
}

async function showLive() {
  const health = await showHealth();
  if (!health) return;
  const problem = await readMetrics();
  tell('live-note', problem ?? 'What the server does now, every two seconds.');
  $('chart').hidden = problem !== undefined;
  if (problem) {
    const { status, code = '', processes } = health;
    showTiles('tiles', [['Status', status, code]]);
    if (processes) showProcesses(processes, processes.maximum);
  }
  await showSessions();
}

const clock = (time) =>
  new Date(time).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });

async function deleteSession(id) {
  if (!confirm(`Delete session ${id}, with its history?`)) return;
  const path = `/v1/sessions/${encodeURIComponent(id)}`;
  const response = await request(path, { method: 'DELETE' });
  announce(response.ok ? `Session ${id} is deleted` : await problemOf(response));
  await showSessions();
}

const sessionRow = ({ session_id: id, message_count: count, last_accessed, expires_at }) =>
  [make('span', { title: id }, id), count, clock(last_accessed), clock(expires_at),
    button('.copy', 'Delete', () => deleteSession(id), { 'aria-label': `Delete ${id}` })];

async function showSessions() {
  const { sessions } = mayAsk() ? await ask('/v1/sessions') : { sessions: [] };
  const now = JSON.stringify(sessions);
  if (known.sessions !== now) {
    const head = ['Session', 'Messages', 'Last used', 'Ends'];
    tell('sessions', sessions.length ? tableOf([head, ...sessions.map(sessionRow)]) : '');
  }
  Object.assign(known, { sessions: now, session: sessions[0]?.session_id ?? '' });
  tell('session-count', mayAsk() ? sessions.length : 'told with the key');
  $('no-sessions').hidden = !mayAsk() || sessions.length > 0;
}

// ---- usage ----

async function showUsage() {
  if ($('usage').hidden) return;
  const by = $('usage-by').value;
  const days = parseInt($('usage-days').value, 10) || 1;
  const from = new Date(Date.now() - (days - 1) * 864e5).toISOString().slice(0, 10);
  const { data, total, plan } = await ask(`/v1/usage?by=${by.toLowerCase()}&from=${from}`);
  const [answers, input, output, reads, writes, cached, cost] = Object.values(total);
  showTiles('usage-tiles', [
    ['Answers', short(answers), ''],
    ['Tokens in', short(input + reads + writes), `${percent(cached)} cached`],
    ['Tokens out', short(output), ''],
    ['Cost', dollars(cost), 'at the list price'],
    ...(plan ? [[
      'Plan', dollars(plan.cost_usd), `for ${dollars(plan.list_price_usd)} of answers`,
    ]] : []),
  ]);
  const now = JSON.stringify([by, data]);
  if (known.usage === now) return; // a table that is scrolled stays so
  known.usage = now;
  if (by === 'Day') data.reverse();
  const formats = [String, short, short, short, short, short, percent, dollars];
  tell('usage-table', tableOf([
    [by, 'Answers', 'Input', 'Output', 'Cache reads', 'Cache writes', 'Cached', 'Cost'],
    ...data.map((row) => Object.values(row).map((value, at) => formats[at](value))),
  ]));
}

// ---- explorer ----

const known = { session: '', response: '' }; // ids from answers, for paths
const hello = '"messages":[{"role":"user","content":"Say hello"}]';
const greet = '"input":"Say hello"';

/** By group: the method, the path, the description and an example body of each route. */
const routes = `Ask the model
POST /v1/chat/completions OpenAI chat completions {${hello},"stream":true}
POST /v1/responses OpenAI Responses {${greet},"stream":true}
POST /v1/responses/input_tokens Counts the tokens of a Responses request {${greet}}
POST /v1/messages Anthropic Messages {${hello},"max_tokens":1000,"stream":true}
POST /v1/messages/count_tokens Counts the tokens of a Messages request {${hello}}
POST /v1/completions OpenAI legacy completions {"prompt":"Once upon","stream":true}
POST /v1/fim/completions Fills in the middle of a text {"prompt":"One, ","suffix":", three"}
POST /api/chat Ollama's chat {${hello},"stream":false}
POST /api/generate Ollama's completion {"prompt":"Say hello","stream":false}
POST /v1/debug/request Tells how a request is read, and what is wrong {${hello}}
POST /v1/compatibility Tells which fields of a chat request count {${hello},"seed":42}

Models and conversations
GET /v1/models Lists the models
GET /v1/models/{model} Describes a model
GET /api/tags Lists the models, for Ollama
POST /api/show Describes a model, for Ollama {}
GET /api/ps Lists loaded models: none
GET /v1/sessions Lists the sessions
GET /v1/sessions/stats Counts the sessions
GET /v1/sessions/{session} Describes a session
DELETE /v1/sessions/{session} Deletes a session
GET /v1/responses/{response} Shows a stored response
GET /v1/responses/{response}/input_items Lists the input of a response
POST /v1/responses/{response}/cancel Cancels a response
DELETE /v1/responses/{response} Deletes a response

The agent
GET /v1/tools Lists Claude Code's tools
GET /v1/tools/config Lists the tools you may use
POST /v1/tools/config Chooses the tools of your key {"allowed_tools":["Read","Glob","Grep"]}
GET /v1/tools/stats Counts the tools
GET /v1/mcp/servers Lists the MCP servers
POST /v1/mcp/servers Adds an MCP server {"name":"clock","command":"clock-mcp-server","args":[]}
POST /v1/mcp/connect Connects to an MCP server {"server_name":"clock"}
POST /v1/mcp/disconnect Disconnects an MCP server {"server_name":"clock"}
GET /v1/mcp/stats Counts the MCP servers

The server
GET /v1/auth/status Tells the auth method, and what is missing
GET /metrics Shows figures for Prometheus
GET /v1/usage Sums up usage, with --store
GET /health Tells whether requests are answered
GET /version Tells the version
GET /api/version Tells Ollama's version
GET / This page; plain text for curl`;

/** The text that one event of a stream adds, in a dialect of events. */
function deltaOf({ choices, type, delta }) {
  if (choices) return choices[0]?.delta?.content ?? choices[0]?.text;
  return type === 'response.output_text.delta' ? delta : delta?.text;
}

class Trial {
  status = make('p.row', { role: 'status' });
  output = make('div.answer', this.status);
  action = button('.main', '', () => (this.running ? this.running.abort() : this.run()));
  whole = make('div.try');

  constructor(method, path, example) {
    Object.assign(this, { method, path, verb: method === 'GET' ? 'Fetch' : 'Send' });
    this.action.textContent = this.verb;
    this.wanted = /{(\w+)}/.exec(path)?.[1];
    if (this.wanted) {
      this.id = make('input.code', { spellcheck: 'false' });
      this.whole.append(make('label', `Id of the ${this.wanted}`, this.id));
    }
    if (example) {
      this.body = make('textarea.code', { spellcheck: 'false', rows: 9 });
      const asking = /tools|mcp/.test(path) ? {} : { model };
      this.body.value = pretty({ ...asking, ...JSON.parse(example) });
      this.whole.append(make('label', 'Body', this.body));
    }
    this.whole.append(rowOf(this.action,
      copyButton('Copy as curl', () => curlOf(this.asked()), 'As curl')), this.output);
  }

  open() {
    if (this.id && !this.id.value) this.id.value = { model, ...known }[this.wanted];
    if (this.method === 'GET' && this.id?.value !== '' && !this.running) this.run();
  }

  asked() {
    const path = this.path.replace(/{\w+}/, () => encodeURIComponent(this.id.value.trim()));
    return { method: this.method, path, body: this.body?.value };
  }

  tell(...parts) {
    if (this.first) parts.push(muted(`First token ${span(this.first)}`));
    this.status.replaceChildren(...parts, muted(`${span(this.age())} in all`));
  }

  async run() {
    const running = new AbortController();
    Object.assign(this, { running, age: timer(), first: undefined });
    const { path, ...asked } = this.asked();
    const headers = { Accept: path === '/' ? 'text/plain' : '*/*', ...(asked.body && json) };
    this.action.textContent = 'Stop';
    this.output.replaceChildren(this.status);
    this.status.replaceChildren(muted('Waiting…'));
    try {
      await this.show(await request(path, { ...asked, headers, signal: running.signal }));
    } catch (error) {
      this.tell(running.signal.aborted ? 'Stopped' : `No answer: ${error.message}`);
    }
    this.running = undefined;
    this.action.textContent = this.verb;
  }

  async show(response) {
    const { status, statusText, headers } = response;
    const told = make(`span.state.${status < 400 ? 'good' : 'bad'}`, `${status} ${statusText}`);
    const list = [...headers].map((pair) => pair.join(': '));
    this.output.append(make('details.small',
      make('summary', `Headers (${list.length})`), pre('', list.join('\n'))));
    this.status.replaceChildren(told);
    if (isStream(response)) await this.showStream(response);
    else {
      const text = await response.text();
      const value = attempt(() => pretty(JSON.parse(text)));
      this.status.after(value ? pre('', ...coloured(value)) : pre('.flow', text));
      remember(text);
    }
    this.tell(told);
  }

  async showStream(response) {
    const said = pre('.flow');
    const raw = pre('');
    const title = make('summary');
    this.status.after(said, make('details.small', title, raw));
    let count = 0;
    for await (const data of eventsOf(response)) {
      title.textContent = `Events (${++count})`;
      raw.append(`${data}\n`);
      remember(data);
      if (data === '[DONE]') continue;
      const value = JSON.parse(data);
      const error = value.error ?? value.response?.error;
      const delta = error ? pretty(error) : deltaOf(value);
      if (delta) this.first ??= this.age();
      said.append(delta ?? '');
    }
  }
}

const remember = (text) => {
  known.response = /"(resp_\w+)"/.exec(text)?.[1] ?? known.response;
};

function endpointOf(route) {
  const [, method, path, what, example] = /(\S+) (\S+) ([^{]*)(.*)/.exec(route);
  let trial;
  const made = make('details.endpoint', make('summary',
    make(`span.method.${method}`, method), make('code', path), muted(what)));
  made.addEventListener('toggle', () => {
    if (!made.open) return trial.running?.abort();
    trial ??= new Trial(method, path, example);
    made.append(trial.whole);
    return trial.open();
  });
  return made;
}

tell('explorer', ...routes.split('\n\n').map((group) => {
  const [name, ...lines] = group.split('\n');
  return make('div.group', make('h3', name),
    make('div.card', ...lines.map(endpointOf)));
}));

// ---- the start ----

/** All that depends on the key. Its failures are told elsewhere. */
const showEverything = () => Promise.allSettled([showAccount(), showLive().then(showUsage)]);

on('usage', 'input', showEverything);
showKeyState();
showEverything();
if (!mayAsk()) askForKey();
for (let round = 1; ; round++) {
  await sleep(2000);
  // The CLI is looked at some time after the server's start.
  if (!document.hidden) await (round % 5 ? showLive() : showEverything()).catch(() => {});
}
</script>
</body>
</html>
)page";

/// `text` with every `{{name}}` replaced by its value.
inline std::string fill_in(std::string_view text, std::string_view name, std::string_view value) {
  const auto placeholder = "{{" + std::string(name) + "}}";
  std::string filled;
  for (;;) {
    const auto at = text.find(placeholder);
    filled.append(text.substr(0, at));
    if (at == std::string_view::npos) return filled;
    filled.append(value);
    text.remove_prefix(at + placeholder.size());
  }
}

/// The page's form of `client_recipes`: settings with the file that they are for.
inline std::string render_recipes() {
  std::string rows = "[";
  for (const auto& client : client_recipes) {
    const std::string_view settings = client.settings;
    std::string text;
    if (*client.file != '\0') text = "In ~/" + std::string(client.file);
    if (*client.start != '\0') text += "; then: " + std::string(client.start);
    if (!text.empty()) text = (settings.front() == '{' ? "// " : "# ") + text + "\n";
    text += text::trim(settings);
    rows += "[`" + std::string(client.title) + "`, `" + text + "`],";  // as they are: none has a `
  }
  return rows + "]";
}

/// The page, with a nonce of this answer's own. No secret is in it.
inline std::string render(std::string_view nonce, bool key_required) {
  auto filled = fill_in(document, "nonce", nonce);
  filled = fill_in(filled, "version", CLAUDE_OPENAI_VERSION);
  filled = fill_in(filled, "repository", repository);
  filled = fill_in(filled, "recipes", render_recipes());
  return fill_in(filled, "key_required", key_required ? "true" : "false");
}

/// Only what carries the nonce is run or laid out, and the page talks to this server alone.
inline std::string content_security_policy(std::string_view nonce) {
  const auto own = "'nonce-" + std::string(nonce) + "'";
  return "default-src 'none'; script-src " + own + "; style-src " + own +
         "; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
         "frame-ancestors 'none'";
}

}  // namespace page

//================================================================================================
// [34] connection - one client's connection and the bodies of its requests, by httplib's parts
// uses: text, errors, json_access, options, cli_command, process, guard, http_head, transport
//       | one thread, but for body_budget
//================================================================================================

/// The memory of bodies that are being read and worked on, all together, so that many large ones do
/// not add up.
class body_budget {
 public:
  explicit body_budget(std::size_t most) : max_(most) {}

  /// A body's share; it goes with it.
  class share {
   public:
    explicit share(body_budget& owner) : owner_(owner) {}
    share(const share&) = delete;
    share& operator=(const share&) = delete;
    ~share() { owner_.used_ -= bytes_; }

    /// Throws a 503 when there is no room for a body of that size. For small ones there always is:
    /// large ones shut nobody out.
    void grow_to(std::size_t bytes) {
      constexpr std::size_t small = 64 * 1024;
      if (bytes <= std::max(bytes_, small)) return;
      const auto more = bytes - bytes_;
      if ((owner_.used_ += more) > owner_.max_) {
        owner_.used_ -= more;
        throw api_error(error_kind::unavailable, "too many large requests at once; try again");
      }
      bytes_ = bytes;
    }

   private:
    body_budget& owner_;
    std::size_t bytes_ = 0;
  };

 private:
  const std::size_t max_;
  std::atomic<std::size_t> used_{0};
};

inline api_error body_too_large(std::size_t limit) {
  return {error_kind::too_large,
          "the request body is too large; the limit is " + std::to_string(limit) + " bytes"};
}

#ifdef CPPHTTPLIB_ZLIB_SUPPORT
constexpr const char* taken_codings = "gzip, deflate";

/// The body without its coding, gzip or deflate. Throws an `api_error`, as soon as it is over the
/// limit or the budget.
inline std::string decode_body(const std::string& coded, std::size_t limit,
                               body_budget::share& share) {
  std::string body;
  httplib::detail::gzip_decompressor decoder;
  const bool valid = decoder.is_valid() &&
                     decoder.decompress(coded.data(), coded.size(), [&](const char* bytes, auto n) {
                       if (n > limit - body.size()) throw body_too_large(limit);
                       share.grow_to(coded.size() + body.size() + n);
                       body.append(bytes, n);
                       return true;
                     });
  if (valid) return body;
  throw api_error(error_kind::invalid_request,
                  "the request body is not what Content-Encoding says");
}
#else
constexpr const char* taken_codings = "identity";

inline std::string decode_body(const std::string& coded, std::size_t, body_budget::share&) {
  return coded;
}
#endif

/// True for a body that `decode_body` takes, false for one without a coding. Throws a 415.
inline bool is_coded(std::string coding) {
  coding = text::to_lower(coding);
  if (coding.empty() || coding == "identity") return false;
  const auto taken = text::split(taken_codings, ',');
  if (std::find(taken.begin(), taken.end(), coding) != taken.end()) return true;
  throw api_error(error_kind::unsupported_coding,
                  "this proxy does not take bodies of Content-Encoding '" +
                      text::repair_utf8(coding) + "'; it takes " + taken_codings);
}

/// One client's connection: its requests one after the other, and the stream that httplib reads a
/// head from and writes the answer to. Bounds the time and the bytes that a request may take. Owned
/// by the thread that serves it, but for `waiting_since`.
///
/// No `override`: the virtual functions differ between the versions of httplib.
class connection final : public httplib::Stream {
 public:
  /// Once `stop` is raised nothing more is read than what has arrived, but for the first request.
  connection(unique_fd socket, std::shared_ptr<const tls_context> tls, const wake_signal& stop)
      : stop_(stop),
        tls_(std::move(tls)),
        channel_(std::move(socket), tls_.get()),
        address_(peer_address(channel_.fd())) {}

  /// Whose process the client is, where the system tells; looked up once.
  std::optional<uid_t> user() {
    if (!user_) user_ = uid_of_peer(channel_.fd());
    return *user_;
  }

  /// Reads the next request's head. False when there will be none. Throws an `api_error` for one
  /// that is no HTTP.
  bool read_request() {
    waiting_since_ = ticks_now();
    write_deadline_ = steady_time::max();
    // Who has just connected is about to send; on a connection that waits nothing is under way.
    const bool is_first = shown_.empty();
    const auto has_more = [&] { return fill(keep_alive_ms) || (is_first && fill(fresh_ms, -1)); };
    if (buffer_.empty() && !has_more()) return false;
    deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(head_ms);
    std::size_t end = 0;
    std::size_t searched = 0;
    for (int lines = 0; text::starts_with(buffer_, "\r\n") && lines < 4; ++lines) {
      buffer_.erase(0, 2);  // RFC 9112, 2.2: after a body some clients send too much
    }
    do {
      if (!http_head::begins_well(buffer_)) throw http_head::broken("the request line");
      end = buffer_.find("\r\n\r\n", searched > 3 ? searched - 3 : 0);
      searched = buffer_.size();
      if (searched > max_head_bytes && end > max_head_bytes) throw too_long();
    } while (end == std::string::npos && fill(poll_timeout(deadline_)));
    if (end == std::string::npos) return false;
    head_ = http_head::parse(std::string_view(buffer_).substr(0, end + 2));
    buffer_.erase(0, end + 4);
    waiting_since_ = 0;
    body_read_ = !head_.has_body();
    present_head();
    return true;
  }

  const request_head& head() const { return head_; }

  /// The request's body, once. Throws an `api_error`; one over the limit is not read on.
  std::string read_body(std::size_t limit, body_budget::share& share) {
    if (body_read_) return {};
    if (head_.content_length.value_or(0) > limit) throw body_too_large(limit);
    if (head_.expects_continue && !head_.http_1_0) write_all("HTTP/1.1 100 Continue\r\n\r\n");
    std::string body;
    const auto most = static_cast<std::size_t>(head_.content_length.value_or(limit));
    chunk_decoder chunks;
    const auto begun = std::chrono::steady_clock::now();
    while (!take_body(body, chunks)) {
      if (body.size() > limit) throw body_too_large(limit);
      if (body.size() + bytes_at_once > body.capacity()) {
        const auto room = std::min(most, 2 * body.size() + bytes_at_once);
        share.grow_to(room);
        body.reserve(room);
      }
      const std::chrono::milliseconds allowed(body_ms + body.size() / slowest_bytes_per_ms);
      const bool late = std::chrono::steady_clock::now() > begun + allowed;
      if (late || !fill(body_ms)) {
        if (stop_.is_raised()) throw api_error(error_kind::unavailable, "the proxy is stopping");
        throw api_error(error_kind::invalid_request, "the request body did not arrive whole");
      }
    }
    if (body.size() > limit) throw body_too_large(limit);
    body_read_ = true;
    took_much_ = took_much_ || body.size() > 1024 * 1024;
    return body;
  }

  /// True when a large body was read since this was last asked.
  bool took_much() { return std::exchange(took_much_, false); }

  /// The rest of this request will not be read, so no other can follow on this connection.
  void close_after_reply() { closing_ = true; }
  bool is_closing() const { return closing_ || !body_read_ || head_.closes; }
  int fd() const { return channel_.fd(); }
  const std::string& address() const { return address_; }

  /// When the wait for the next request began, in ticks of the steady clock; 0: a request is under
  /// way. For other threads too.
  std::int64_t waiting_since() const { return waiting_since_; }

  /// Waits; meanwhile another client may have this one's place.
  void rest(int timeout_ms) {
    waiting_since_ = ticks_now();
    channel_.wait(0, timeout_ms, stop_.fd());
    waiting_since_ = 0;
  }

  /// A client that does not read what is written of this answer until then is given up.
  void write_until(steady_time deadline) { write_deadline_ = deadline; }

  bool write_all(std::string_view bytes) { return write(bytes.data(), bytes.size()) >= 0; }

  /// Lets the client read the answer although bytes of its request were never read: closing at
  /// once would reset the connection and take the answer away.
  void linger() {
    waiting_since_ = ticks_now();
    channel_.shut_down();
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(linger_ms);
    while (std::chrono::steady_clock::now() < until && fill(poll_timeout(until), -1)) {
      buffer_.clear();
    }
  }

  // What httplib asks of a stream, in all its versions.

  bool is_readable() const { return next_ < shown_.size(); }
  bool is_writable() const { return is_peer_alive(); }
  bool wait_readable() const { return is_readable(); }
  bool wait_writable() const { return is_peer_alive(); }
  bool is_peer_alive() const { return !channel_.wait(0, 0); }
  ssize_t read(char* bytes, std::size_t size) {
    const auto count = std::min(size, shown_.size() - next_);
    std::memcpy(bytes, shown_.data() + next_, count);
    next_ += count;
    return count == 0 ? -1 : static_cast<ssize_t>(count);
  }
  ssize_t write(const char* bytes, std::size_t size) {
    std::size_t sent = 0;
    while (sent < size) {
      std::size_t count = 0;
      const auto result = channel_.send(bytes + sent, size - sent, count);
      if (result == io_result::moved) sent += count;
      if (result == io_result::ended) return -1;
      if (result != io_result::wait) continue;
      waiting_since_ = ticks_now();  // a client that does not read may lose its place to another
      const bool goes_on = channel_.wait_wanted(std::min(write_ms, poll_timeout(write_deadline_)));
      waiting_since_ = 0;
      if (!goes_on) return -1;
    }
    return static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string& ip, int&) const { ip = address_; }
  void get_local_ip_and_port(std::string&, int&) const {}
  socket_t socket() const { return INVALID_SOCKET; }  // httplib shall not touch it
  time_t duration() const { return 0; }

 private:
  static constexpr int keep_alive_ms = 75'000;
  static constexpr int fresh_ms = 250;  ///< for the first request, once `stop` is raised
  static constexpr int head_ms = 30'000;
  static constexpr int body_ms = 30'000;  ///< of silence; and in all, beside the time for its bytes
  static constexpr std::size_t slowest_bytes_per_ms = 16;
  static constexpr int write_ms = 60'000;
  static constexpr int linger_ms = 1'000;
  static constexpr std::size_t max_head_bytes = 32 * 1024;
  static constexpr std::size_t bytes_at_once = 16 * 1024;

  static std::int64_t ticks_now() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
  }

  static api_error too_long() {
    return http_head::broken("its head is longer than " + std::to_string(max_head_bytes) +
                             " bytes");
  }

  /// Moves what has arrived to the body. True when that was all of it.
  bool take_body(std::string& body, chunk_decoder& chunks) {
    if (head_.chunked) {
      buffer_.erase(0, chunks.feed(buffer_, body));
      return chunks.done();
    }
    const auto length = static_cast<std::size_t>(*head_.content_length);
    const auto count = std::min(length - body.size(), buffer_.size());
    body.append(buffer_, 0, count);
    buffer_.erase(0, count);
    return body.size() == length;
  }

  /// Waits for bytes. False when none came in time, none will, or `stop` is raised.
  bool fill(int timeout_ms) { return fill(timeout_ms, stop_.fd()); }

  /// The same, with what may end the wait; -1: nothing.
  bool fill(int timeout_ms, int stop) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    std::array<char, bytes_at_once> chunk;
    for (;;) {
      std::size_t count = 0;
      const auto result = channel_.receive(chunk.data(), chunk.size(), count);
      if (result == io_result::moved) {
        buffer_.append(chunk.data(), count);
        return true;
      }
      if (result == io_result::ended) return false;
      if (!channel_.wait_wanted(poll_timeout(until), stop)) return false;
    }
  }

  /// What httplib is given to parse: a head that none of its versions takes in another way. Our own
  /// fields are put in by `http_server::prepare`.
  void present_head() {
    auto target = head_.target;
    const auto query = std::min(target.find('?'), target.size());
    for (auto at = target.rfind('?'); at != target.npos && at > query; at = target.rfind('?')) {
      target.replace(at, 1, "%3F");  // httplib takes a second one for a fault
    }
    shown_ = head_.method + " " + target + (head_.http_1_0 ? " HTTP/1.0" : " HTTP/1.1") +
             "\r\nContent-Length: 0\r\n" + (head_.closes ? "Connection: close\r\n" : "") + "\r\n";
    next_ = 0;
  }

  const wake_signal& stop_;
  std::shared_ptr<const tls_context> tls_;
  channel channel_;
  std::string address_;
  std::optional<std::optional<uid_t>> user_;
  std::string buffer_;  ///< bytes of this request's body and perhaps of the next request
  request_head head_;
  bool body_read_ = true;
  bool took_much_ = false;
  std::string shown_;     ///< the head that httplib reads
  std::size_t next_ = 0;  ///< what of it httplib has not read yet
  bool closing_ = false;
  steady_time deadline_{};
  steady_time write_deadline_ = steady_time::max();
  std::atomic<std::int64_t> waiting_since_{ticks_now()};
};

/// What another server has answered.
struct remote_answer {
  int status = 0;    ///< 0 when none has come
  std::string body;  ///< or why none has come
  std::string type;  ///< Content-Type
  std::string id;    ///< X-Request-Id
};

/// Asks another server, over a connection of its own: POST with a body, GET without one. `base` is
/// an address, perhaps with a path, or `unix:PATH`. Throws `std::invalid_argument` for a scheme
/// that the installed httplib does not speak.
inline remote_answer ask_server(const std::string& base, const std::string& path,
                                const std::string& body,
                                const std::vector<std::pair<std::string, std::string>>& headers,
                                std::chrono::milliseconds timeout) {
  const bool local = text::starts_with(base, "unix:");
  const auto end =
      std::min(local ? base.size() : base.find('/', base.find("://") + 3), base.size());
  httplib::Client client(local ? base.substr(5) : base.substr(0, end));
  if (!client.is_valid()) return {0, "httplib cannot reach such an address", {}, {}};
  if (local) client.set_address_family(AF_UNIX);
  client.set_connection_timeout(5);
  client.set_read_timeout(timeout);
  httplib::Request request;
  request.method = body.empty() ? "GET" : "POST";
  request.path = base.substr(end) + path;
  request.headers = httplib::Headers(headers.begin(), headers.end());
  if (local) request.set_header("Host", "localhost");
  if (!body.empty()) request.set_header("Content-Type", "application/json");
  request.body = body;
  const auto answer = client.send(request);
  if (!answer) return {0, httplib::to_string(answer.error()), {}, {}};
  return {answer->status, answer->body, answer->get_header_value("Content-Type"),
          answer->get_header_value("X-Request-Id")};
}

/// Asks the API for the true count, which takes an API key and no `claude`. Nullopt when it
/// cannot be had: with other methods, aliases of models, or no TLS in the installed httplib.
inline std::optional<std::int64_t> count_by_api(const options& settings, const json& body) {
  const auto& variables = settings.environment;
  const auto key = value_or(variables, "ANTHROPIC_API_KEY");
  if (resolve_auth(settings) != auth_method::api_key || key.empty()) return std::nullopt;
  const auto answer = ask_server(
      value_or(variables, "ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
      "/v1/messages/count_tokens", dump(body),
      {{"x-api-key", key}, {"anthropic-version", "2023-06-01"}}, std::chrono::seconds(10));
  const auto count = integer_of(try_parse_json(answer.body), "input_tokens");
  return answer.status == 200 && count > 0 ? std::optional<std::int64_t>(count) : std::nullopt;
}

//================================================================================================
// [35] routes - what each path answers, who may ask it, and answers that are streamed
// uses: text, errors, log, json_access, options, conversation, fields, events, sse, openai_chat,
//       anthropic_messages, openai_responses, openai_completions, catalog, ollama, process, pool,
//       store, sessions, responses, engine, agents, guard, limits, metrics, status, http_head,
//       page, connection | thread-safe
//================================================================================================

/// The parts of the proxy that the routes use. Owned by `server`, and outlives every connection.
struct proxy_parts {
  using answer_callback = std::function<void(const request_figures&)>;

  proxy_parts(const options& start, temporary_directory& scratch, const wake_signal& closing,
              const wake_signal& cut, const answer_callback& answered)
      : settings(start),
        store(open_store(start)),
        guard(std::make_shared<child_guard>(&scratch)),
        processes(start, guard),
        sessions(start, store),
        turns(start, processes, sessions, &cut),
        responses(start, store),
        agents(start, scratch.path(), *guard, store),
        bodies(std::max(max_body_memory, 2 * start.max_body_bytes)),
        stop(closing),
        on_answer(answered) {}

  static constexpr std::size_t max_body_memory = 40 * 1024 * 1024;

  live_options settings;
  const std::shared_ptr<state_store> store;
  state_store& state = *store;
  const std::shared_ptr<const child_guard> guard;
  status_board status;
  limiter limits{store};
  metrics figures{store};
  pool processes;
  session_store sessions;
  engine turns;
  response_store responses;
  agent_registry agents;
  client_names names{sessions.salt()};
  body_budget bodies;
  const wake_signal& stop;
  const answer_callback& on_answer;
};

struct http_response {
  /// False when the client has left.
  using write_bytes = std::function<bool(std::string_view)>;

  int status = 200;
  std::map<std::string, std::string> headers = {};
  std::string body = {};
  std::string type = {};
  std::function<bool(const write_bytes&)> stream = {};  ///< writes the body instead

  void set(const std::string& name, std::string value) { headers[name] = std::move(value); }
  void set_body(std::string content, std::string content_type) {
    body = std::move(content);
    type = std::move(content_type);
  }
};

/// One request on its way through a route.
struct request_context {
  proxy_parts& proxy;
  connection& client;
  std::string method;
  std::string path;  ///< decoded; see `canonical_path`
  std::multimap<std::string, std::string> query;
  std::shared_ptr<const options> settings;  ///< as they were when it came
  std::string deployment = {};              ///< the model that Azure's form of a path names
  std::shared_ptr<request_record> record = std::make_shared<request_record>();
  std::optional<body_budget::share> body_share = {};  ///< held while the body is worked on
  visitor who = {};
  http_response response = {};

  const std::string& id() const { return record->id; }
  const std::string& client_id() const { return record->client_id; }

  /// The first field of that name, in any case of letters.
  std::optional<std::string> find_header(std::string_view name) const {
    for (const auto& [field, value] : client.head().fields) {
      if (text::to_lower(field) == text::to_lower(name)) return value;
    }
    return std::nullopt;
  }
  bool has_header(std::string_view name) const { return find_header(name).has_value(); }
  std::string header(std::string_view name) const { return find_header(name).value_or(""); }

  /// The values of all fields of that name, in their order: proxies add lines of their own.
  std::string all_values_of(std::string_view name) const {
    std::vector<std::string> values;
    for (const auto& [field, value] : client.head().fields) {
      if (text::to_lower(field) == name) values.push_back(value);
    }
    return text::join(values, ", ");
  }

  /// Of the query; empty for none.
  std::string parameter(const std::string& name) const {
    const auto found = query.find(name);
    return found == query.end() ? std::string() : found->second;
  }
};

namespace routes {

constexpr const char* json_type = "application/json";
constexpr int status_client_left = 499;  ///< nginx's number, for the log

/// No line end may be echoed in a header.
inline std::string printable(std::string value) {
  value.erase(std::remove_if(value.begin(), value.end(), [](char c) { return c < ' ' || c > '~'; }),
              value.end());
  return value;
}

/// A path of Ollama's API, which has no `/v1`.
inline bool is_ollama(std::string_view path) { return text::starts_with(path, "/api/"); }

/// True when errors have Anthropic's format on a route that has no dialect of its own.
inline bool speaks_anthropic(const request_context& now) {
  const bool messages = now.path == "/messages" || text::starts_with(now.path, "/messages/");
  const bool openai = now.path == "/chat/completions" || now.path == "/completions" ||
                      text::starts_with(now.path, "/responses");
  return messages || (!openai && now.has_header("anthropic-version"));
}

// ---- who may ask ------------------------------------------------------------------------------

/// What a route asks of its client.
enum class access {
  open,   ///< nothing
  chat,   ///< a key, if keys are set
  own,    ///< that, and no page of another origin
  tools,  ///< the right to `enable_tools`
};

/// Throws a 403 for a client that may not have what this is needed for.
inline void check_rights(const request_context& now, access needed) {
  const auto& refusal = needed == access::tools ? now.who.tools_refusal : now.who.page_refusal;
  if (needed > access::chat && !refusal.empty()) {
    throw api_error(error_kind::permission, refusal);
  }
}

/// By what the rate limit counts a client: its address; on this machine the address and the user.
inline std::string counted_name(request_context& now) {
  const auto& address = now.record->address;
  const bool own = address == "unix" || is_loopback_name(address);
  const bool wanted = is_limited(*now.settings) || !now.settings->api_keys.empty();
  if (!own || !wanted || address != now.client.address()) return address;
  const auto user = now.client.user();
  return user ? address + " of user " + std::to_string(*user) : address;
}

/// Counts the request against the rate limit, tells how the client stands, and throws a 429 when
/// it asks too often. The stricter of its two limits is reported: its address's or its key's.
inline void count_request(request_context& now, endpoint_group group, const std::string& who) {
  if (group == endpoint_group::none || !is_limited(*now.settings)) return;
  const auto standing = now.proxy.limits.count(group, who, now.settings->limits);
  auto& headers = now.response.headers;
  const auto header = headers.find("x-ratelimit-remaining-requests");
  const bool stricter = header == headers.end() ||
                        standing.remaining <= text::try_number<int>(header->second).value_or(0);
  if (stricter) {
    const auto seconds = std::chrono::ceil<std::chrono::seconds>(standing.reset).count();
    for (const char* name : {"limit", "remaining", "reset"}) {
      headers.erase("x-ratelimit-" + std::string(name) + "-requests");
    }
    headers.emplace("x-ratelimit-limit-requests", std::to_string(standing.limit));
    headers.emplace("x-ratelimit-remaining-requests", std::to_string(standing.remaining));
    headers.emplace("x-ratelimit-reset-requests", std::to_string(seconds) + "s");
  }
  if (standing.allowed) return;
  now.proxy.figures.reject("rate_limit");
  throw rate_limit_error(standing.reset);
}

/// Lets the client in, or throws. The answer to a wrong key waits, and too many are not even
/// compared, so that guessing takes long; on every route, since each would tell a right key.
inline void admit(request_context& now, const credentials& shown, bool needs_key) {
  const auto who_guesses = counted_name(now);
  // The key of a page that is turned away by its origin is not compared.
  const bool compared = shown.origin.empty() || is_welcome_origin(shown, *now.settings);
  const bool may_guess =
      compared && !presented_key(shown).empty() && !now.settings->api_keys.empty();
  const auto wait = may_guess ? now.proxy.limits.try_key(who_guesses) : std::nullopt;
  if (wait) {
    now.proxy.figures.reject("key");
    auto error = rate_limit_error(*wait);
    error.message = "Too many wrong keys came from your address. " + error.message;
    throw error;
  }
  try {
    auto who = check_access(shown, *now.settings, needs_key);
    now.record->client_id = now.proxy.names.name_of(who.key);
    if (may_guess && !who.key.empty()) now.proxy.limits.note_right_key(who_guesses);
    now.record->client = who.label;
    now.who = std::move(who);
  } catch (const api_error& refused) {
    now.proxy.figures.reject(refused.kind == error_kind::authentication ? "key" : "origin");
    if (refused.kind == error_kind::authentication && !presented_key(shown).empty()) {
      const auto delay = now.proxy.limits.wrong_key_delay(who_guesses);
      now.client.rest(static_cast<int>(delay.count()));
    }
    throw;
  }
}

/// Cross-origin headers for pages that are welcome; others are refused by the guard.
inline void allow_origin(request_context& now, const credentials& shown) {
  if (shown.origin.empty() || !is_welcome_origin(shown, *now.settings)) return;
  auto& response = now.response;
  response.set("Access-Control-Allow-Origin", printable(shown.origin));
  response.set("Vary", "Origin");
  response.set(
      "Access-Control-Expose-Headers",
      "x-request-id, request-id, openai-version, retry-after, retry-after-ms, x-should-retry, "
      "x-ignored-params, x-model-alias, x-claude-account, x-token-count, openai-processing-ms, "
      "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
      "x-ratelimit-reset-requests");
  if (now.method != "OPTIONS") return;
  response.set("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
  response.set("Access-Control-Max-Age", "600");
  const auto wanted = now.header("Access-Control-Request-Headers");
  if (!wanted.empty()) response.set("Access-Control-Allow-Headers", printable(wanted));
  if (now.has_header("Access-Control-Request-Private-Network")) {
    response.set("Access-Control-Allow-Private-Network", "true");
  }
}

// ---- bodies and errors ------------------------------------------------------------------------

/// The whole body without its coding. Throws a 413 over the limit, without reading on, and a 415.
inline std::string read_body(request_context& now) {
  const auto limit = now.settings->max_body_bytes;
  const bool coded = is_coded(now.all_values_of("content-encoding"));
  now.body_share.emplace(now.proxy.bodies);
  auto bytes = now.client.read_body(limit, *now.body_share);
  if (coded) bytes = decode_body(bytes, limit, *now.body_share);
  if (now.settings->log_bodies) {
    now.settings->log.debug(now.id() + " request: " + mask_fields(bytes));
  }
  return bytes;
}

/// The whole body as JSON. Its values count as the memory that they take once they are parsed.
inline json read_json(request_context& now) {
  const auto bytes = read_body(now);
  now.body_share->grow_to(bytes.size() + check_json_bounds(bytes) * bytes_of_json_value);
  return parse_body(bytes);
}

inline const dialect_functions& dialect_of(const request_context& now) {
  if (is_ollama(now.path)) return ollama::chat_dialect;
  return speaks_anthropic(now) ? anthropic_messages::dialect : openai_chat::dialect;
}

inline void answer_error(request_context& now, const api_error& error) {
  const auto& dialect = dialect_of(now);
  now.response.status = dialect.status(error.kind);
  if (now.record->failure.empty()) now.record->failure = word_for(error);
  if (error.code == "budget_exceeded") now.proxy.figures.reject("budget");
  now.response.set_body(dialect.render_error(error, now.id()), json_type);
  const int status = http_status(error.kind);
  if (status == 429 || status == 503) {
    using namespace std::chrono;
    const auto usual = error.retry_after.value_or(seconds(error.retry_is_futile ? 30 : 1));
    const auto wait = std::max(usual, milliseconds(now.record->facts.refused_for));
    now.response.set("Retry-After", std::to_string(ceil<seconds>(wait).count()));
    now.response.set("retry-after-ms", std::to_string(wait.count()));
  }
  if (error.retry_is_futile) now.response.set("x-should-retry", "false");
  if (error.kind == error_kind::authentication) {
    now.response.set("WWW-Authenticate", "Bearer");
  }
  if (error.kind == error_kind::unsupported_coding) {
    now.response.set("Accept-Encoding", taken_codings);
  }
}

/// The last that is done for a request: its line in the log, and its figures.
inline void finish(proxy_parts& proxy, const logger& log, request_record& record) {
  record.ended = std::chrono::steady_clock::now();
  proxy.figures.finish(record);
  const bool known = record.first_token || !record.claude_required.empty();
  const bool ours = !record.facts.on_fallback;  // whose model may have another name
  if (known && ours) proxy.status.note_required(record.model, record.claude_required);
  if (record.reserved.requests > 0) {
    proxy.limits.charge(record.client_id, record.reserved, record.usage, record.reservation);
  }
  call_back(log, proxy.on_answer, record);
  if (!log.wants(log_level::info)) return;
  log.write(log_level::info, render_log_line(record), render_log_fields(record));
}

// ---- routes that ask the model ----------------------------------------------------------------

inline answer_times times_of(const request_record& record) {
  const auto now = std::chrono::steady_clock::now();
  const auto total = now - record.started;
  answer_times times{std::chrono::system_clock::now(), total, record.facts.queued};
  if (!record.first_token) return times;
  times.first = *record.first_token - record.started - times.queued;
  times.rest = now - *record.first_token;
  return times;
}

/// The operator pays for each search of the web (`--web`): no page or stranger may have them.
inline reply_context make_context(const request_context& now) {
  using namespace std::chrono;
  const auto created = duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
  reply_context context{text::random_id("", 24), created, now.id(), {}, [record = now.record] {
                          return times_of(*record);
                        }};
  context.web = now.settings->web && now.who.tools_refusal.empty();
  return context;
}

inline void reserve(request_context& now, const budget& wanted) {
  now.record->reservation = now.proxy.limits.reserve(now.client_id(), wanted, *now.settings);
  now.record->reserved = wanted;
}

inline bool is_strict(const request_context& now) {
  const auto wish = text::to_lower(now.header("X-Strict-Params"));
  return now.settings->strict || wish == "true" || wish == "1";
}

/// What a client asks by headers of its agent; in vain where it asks for none.
inline void apply_headers(const request_context& now, turn_request& turn) {
  if (const auto tokens = now.find_header("X-Claude-Max-Thinking-Tokens")) {
    turn.thinking_tokens = text::try_number<std::int64_t>(text::trim(*tokens));
    if (turn.thinking_tokens.value_or(-1) < 0 || *turn.thinking_tokens > 1'000'000) {
      throw bad_field("X-Claude-Max-Thinking-Tokens", "must be a number from 0 to 1000000");
    }
    turn.budget_field = "X-Claude-Max-Thinking-Tokens";
  }
  const auto shown = text::to_lower(now.header("X-Claude-Show-Activity"));
  if (turn.agent && (shown == "true" || shown == "1")) turn.agent->show_activity = true;
  const agent_headers asked{
      now.find_header("X-Claude-Max-Turns"), now.find_header("X-Claude-Allowed-Tools"),
      now.find_header("X-Claude-Disallowed-Tools"), now.find_header("X-Claude-Permission-Mode"),
      now.find_header("X-Claude-Cwd")};
  if (turn.agent) {
    check_rights(now, access::tools);
    const auto has_budget = [](const budget& limit) { return limit.tokens > 0 || limit.usd > 0; };
    return now.proxy.agents.authorize(
        turn, asked,
        has_budget(now.settings->minute_budget) || has_budget(now.settings->day_budget));
  }
  if (asked.max_turns) name_ignored(turn, "X-Claude-Max-Turns");
  if (asked.allowed_tools) name_ignored(turn, "X-Claude-Allowed-Tools");
  if (asked.disallowed_tools) name_ignored(turn, "X-Claude-Disallowed-Tools");
  if (asked.permission_mode) name_ignored(turn, "X-Claude-Permission-Mode");
  if (asked.directory) name_ignored(turn, "X-Claude-Cwd");
}

/// The model that the operator means by the client's name for it; a header names both. Ollama's
/// clients add `:latest`, also where they speak another API.
inline std::string take_alias(request_context& now, std::string name) {
  constexpr std::string_view tag = ":latest";
  const auto* alias = find_alias(*now.settings, name);
  if (alias == nullptr && name.size() > tag.size() && text::ends_with(name, tag)) {
    name.resize(name.size() - tag.size());
    alias = find_alias(*now.settings, name);
  }
  if (alias == nullptr) return released_model(name);
  now.response.set("x-model-alias", printable(name + "=" + alias->model));
  return alias->model;
}

/// What the model that answers does not take is left out. Which one that is, and who pays, depends
/// on the limits of the plan that are known to be used up.
inline void apply_limits(request_context& now, turn_request& turn) {
  const auto& settings = *now.settings;
  const auto traits = [known = now.proxy.status.get().always_thinking](const std::string& model) {
    return traits_of(model, known);
  };
  const auto& other = settings.fallback_model;
  turn.fallback_traits = traits(other.empty() ? turn.model : other);
  turn.extra_usage = settings.extra_usage;
  if (!apply_plan(turn, now.proxy.processes.programs().limits(), settings)) {
    apply_model_limits(turn, traits(turn.model));
  }
}

/// Puts in what is not in the body: who asks, in which session, and what the model takes.
inline void complete_request(request_context& now, turn_request& turn) {
  turn.client = now.client_id();
  // A page that may only chat shares no process with the programs of this user.
  if (now.who.key.empty() && !now.who.page_refusal.empty())
    turn.client += "page " + now.header("Origin");
  turn.strict = is_strict(now);
  const json deployment = now.deployment;
  if (turn.model.empty()) turn.model = parse_model(reader(deployment, "deployment"));
  if (turn.model.empty()) turn.model = now.settings->default_model;
  turn.model = take_alias(now, turn.model);
  // Beside X-Session-Affinity it only tells a router which server to use (opencode): requests of
  // one such id are of several conversations, and hold their history.
  const bool routed = now.has_header("X-Session-Affinity");
  if (turn.session.empty() && !routed && now.has_header("X-Session-Id")) {
    const json id = now.header("X-Session-Id");
    turn.session = parse_session_id(reader(id, "X-Session-Id"));
  }
  if (!turn.session.empty()) check_rights(now, access::own);
  apply_headers(now, turn);
  const bool ttl = now.proxy.status.get().has_cache_ttl;
  if (!turn.cache_ttl.empty() && !ttl) name_ignored(turn, turn.cache_field);
  apply_limits(now, turn);
}

inline void tell_ignored(request_context& now, const std::vector<std::string>& names) {
  if (names.empty()) return;
  now.response.set("x-ignored-params", text::join(names, ", "));
}

inline void note_use(request_record& record, answer& running, const options& settings) {
  record.facts = running.facts();
  record.usage = running.usage();
  if (!record.facts.model.empty()) record.model = text::repair_utf8(record.facts.model);
  const bool other = record.facts.on_fallback && settings.fallback;
  record.account = name_of(other ? *settings.fallback : resolve_auth(settings));
}

/// The next event, before anything of the answer is written. A client that sends no more is sent
/// an interim response, which any but an old one skips: if it has left, its system says so.
inline answer::pulled pull(request_context& now, answer& running, answer::choice_event& next,
                           steady_time until) {
  for (;;) {
    const auto got = running.next(next, until);
    if (got != answer::pulled::client_half_closed) return got;
    if (!now.client.head().http_1_0) now.client.write_all("HTTP/1.1 100 Continue\r\n\r\n");
  }
}

/// Which account answers, where there are two and it is known; and how much of the subscription is
/// used, as far as that is known.
inline void tell_windows(request_context& now, bool answers) {
  const auto& record = *now.record;
  if (now.settings->fallback && (answers || record.facts.on_fallback)) {
    now.response.set("x-claude-account", record.account);
  }
  for (const auto& window : now.proxy.processes.programs().limits().all()) {
    auto& headers = now.response.headers;
    const auto tell = [&](const char* what, const std::string& value) {
      const auto name = "x-claude-ratelimit-" + window.name + "-" + what;
      const auto exposed = headers.find("Access-Control-Expose-Headers");
      const bool known = headers.erase(name) > 0;
      if (!known && exposed != headers.end()) exposed->second += ", " + name;
      now.response.set(name, printable(value));
    };
    if (!http_head::is_token(window.name)) continue;
    if (!window.status.empty()) tell("status", window.status);
    if (window.extra_usage) tell("extra-usage", "true");
    if (window.utilization) tell("utilization", exposition::number(*window.utilization));
    if (window.resets_at > 0) tell("reset", std::to_string(window.resets_at));
  }
}

/// Nobody reads this answer.
inline void abandon(request_context& now) {
  now.response.status = status_client_left;
  now.client.close_after_reply();
}

constexpr const char* client_left = "client left";

/// A stream under way, owned by the response that it fills. It finishes its request, once.
class open_stream {
 public:
  /// `first`: what came before the status line was sent.
  open_stream(request_context& now, std::unique_ptr<answer> running, std::unique_ptr<reply> writer,
              std::optional<answer::choice_event> first)
      : proxy_(now.proxy),
        settings_(now.settings),
        record_(now.record),
        running_(std::move(running)),
        writer_(std::move(writer)),
        first_(std::move(first)) {}
  open_stream(const open_stream&) = delete;
  open_stream& operator=(const open_stream&) = delete;

  /// Finishes the request of a stream that was never written.
  ~open_stream() { finish_request(client_left); }

  /// Writes it to its end. False when the client has left.
  bool write_all(const http_response::write_bytes& write) {
    try {
      finish_request(write_events(write));
    } catch (...) {
      finish_request("failed");
      throw;
    }
    return record_->ending != client_left;
  }

 private:
  void finish_request(const char* ending) {
    auto running = std::move(running_);  // once, also where something throws
    if (!running) return;
    record_->ending = ending;
    note_use(*record_, *running, *settings_);
    running.reset();
    finish(proxy_, settings_->log, *record_);
  }

  /// Until the answer ends. What is known already goes out in one piece.
  const char* write_events(const http_response::write_bytes& write) {
    auto got = first_ ? answer::pulled::arrived : answer::pulled::silence;
    auto next = first_ ? std::move(*first_) : answer::choice_event();
    bool noted = first_.has_value();
    for (bool ended = false; !ended;) {
      std::string out;
      if (got != answer::pulled::arrived) writer_->write_keep_alive(out);
      while (got == answer::pulled::arrived && !ended) {
        if (!std::exchange(noted, false)) record_->note(next.what);
        writer_->write(next.choice, next.what, out);
        ended = running_->ended();
        if (!ended) got = running_->next(next, steady_time::min());
      }
      if (settings_->log_bodies) {
        settings_->log.debug(record_->id + " stream: " + mask_fields(out));
      }
      if (!out.empty() && !write(out)) return client_left;
      if (ended) break;
      got = running_->next(next, std::chrono::steady_clock::now() + settings_->keep_alive_interval);
      if (got == answer::pulled::client_left) return client_left;
    }
    return record_->failure.empty() ? "done" : "failed";
  }

  proxy_parts& proxy_;
  std::shared_ptr<const options> settings_;
  std::shared_ptr<request_record> record_;
  std::unique_ptr<answer> running_;  ///< null once the request is finished
  std::unique_ptr<reply> writer_;
  std::optional<answer::choice_event> first_;
};

/// Waits for the first event before the status line, so that a failure is a real status; but not
/// longer than a client's patience with silence.
inline void answer_stream(request_context& now, std::unique_ptr<answer> running,
                          std::unique_ptr<reply> writer) {
  std::optional<answer::choice_event> first;
  answer::choice_event next;
  const auto patience = std::chrono::steady_clock::now() + now.settings->keep_alive_interval;
  const auto got = pull(now, *running, next, patience);
  note_use(*now.record, *running, *now.settings);
  if (got == answer::pulled::client_left) return abandon(now);
  if (got == answer::pulled::arrived) {
    now.record->note(next.what);
    if (const auto* failed = std::get_if<turn_failed>(&next.what)) throw failed->error;
    first = std::move(next);
  }
  tell_ignored(now, running->ignored_params());
  tell_windows(now, first.has_value());
  now.response.set("Cache-Control", "no-cache, no-store");
  now.response.set("X-Accel-Buffering", "no");
  now.client.write_until(running->deadline());
  now.response.type = writer->stream_type();
  const auto stream =
      std::make_shared<open_stream>(now, std::move(running), std::move(writer), std::move(first));
  now.response.stream = [stream](const auto& write) { return stream->write_all(write); };
}

inline void answer_whole(request_context& now, answer& running, const reply& writer) {
  std::vector<collector> gathered(running.choices());
  while (!running.ended()) {
    answer::choice_event next;
    const auto got = pull(now, running, next, steady_time::max());
    const bool left = got == answer::pulled::client_left;
    if (left || ends_turn(next.what)) note_use(*now.record, running, *now.settings);
    if (left) return abandon(now);
    now.record->note(next.what);
    gathered.at(next.choice).add(next.what);
  }
  std::vector<turn_result> results;
  for (const auto& one : gathered) results.push_back(one.result());
  tell_ignored(now, running.ignored_params());
  tell_windows(now, true);
  auto body = writer.render(results);
  if (now.settings->log_bodies) now.settings->log.debug(now.id() + " answer: " + mask_fields(body));
  now.response.set_body(std::move(body), json_type);
}

inline void ask(request_context& now, const dialect_functions& dialect, json body,
                reply_context context, std::shared_ptr<const wake_signal> cancelled = nullptr) {
  auto parsed = dialect.parse(body, context);
  body = nullptr;  // which may be large
  if (parsed.turns.empty()) return now.response.set_body(parsed.reply->render({}), json_type);
  for (auto& turn : parsed.turns) {
    complete_request(now, turn);
    if (turn.session.empty()) match_tool_calls(turn.messages, turn.messages_field);
  }
  if (parsed.turns.size() > 1 && !parsed.turns.front().session.empty()) {
    throw bad_field("X-Session-Id", "goes on with one answer, and several are asked for");
  }
  now.record->dialect = dialect.name;
  now.record->model = text::repair_utf8(parsed.turns.front().model);
  refuse_ignored(parsed.turns.front());
  tell_ignored(now, parsed.turns.front().ignored_params);
  const bool stream = parsed.turns.front().stream;
  auto running =
      now.proxy.turns.start(std::move(parsed.turns), now.client.fd(), std::move(cancelled));
  reserve(now, running->likely_use());
  if (stream) {
    answer_stream(now, std::move(running), std::move(parsed.reply));
  } else {
    answer_whole(now, *running, *parsed.reply);
  }
}

template <const dialect_functions& Dialect>
void answer_turn(request_context& now) {
  ask(now, Dialect, read_json(now), make_context(now));
}

/// A response may refer to earlier ones, and later ones to it.
inline void handle_responses(request_context& now) {
  auto context = make_context(now);
  const auto given = read_json(now);
  const bool refers = !member_of(given, "previous_response_id").is_null();
  if (refers || boolean_of(given, "store")) check_rights(now, access::own);
  const bool page = !now.who.page_refusal.empty();
  auto expanded = page ? given : now.proxy.responses.expand(now.client_id(), given);
  if (page) expanded["store"] = false;
  const auto& store = member_of(expanded, "store");
  std::shared_ptr<response_store::running> running;
  auto begun = openai_responses::make_begun_response(context, given);
  if (!store.is_boolean() || store.get<bool>()) {
    running = now.proxy.responses.begin(now.client_id(), given, begun);
    context.keep = [running](const json& response) { running->keep(response); };
  }
  try {
    ask(now, openai_responses::dialect, std::move(expanded), std::move(context),
        running ? running->cancelled() : nullptr);
  } catch (const api_error& error) {
    const bool refused = http_status(error.kind) < 500 && error.code != "cancelled";
    openai_responses::set_failure(begun, error);
    if (running && refused) running->forget();
    if (running && !refused) running->keep(begun);
    throw;
  }
}

// ---- the other routes -------------------------------------------------------------------------

inline void answer_json(request_context& now, const json& body) {
  now.response.set_body(dump(body), json_type);
}

/// What a route's '*' stands for: the rest of the path behind the n-th slash.
inline std::string last_of_path(const request_context& now) {
  return now.path.substr(now.path.find('/', 1) + 1);
}

/// As far as the API can be asked, it counts; else the size is an estimate, and marked as one. The
/// body is the turn as a request of the Messages API.
inline std::int64_t count_tokens(request_context& now, turn_request& turn, const json& body) {
  define_called_tools(turn);
  reserve(now, {1, 0, 0});
  auto asked = anthropic_messages::make_count_request(body, turn);
  asked["model"] = take_alias(now, string_of(asked, "model"));
  asked["model"] = now.proxy.status.get().resolve(string_of(asked, "model"));
  const auto counted = count_by_api(*now.settings, asked);
  now.response.set("x-token-count", counted ? "exact" : "estimate");
  return counted.value_or(anthropic_messages::estimate_tokens(turn));
}

inline void handle_count_tokens(request_context& now) {
  const auto body = read_json(now);
  auto turn = anthropic_messages::parse_request(body, true, make_context(now).web);
  answer_json(now, json::object({{"input_tokens", count_tokens(now, turn, body)}}));
}

inline void handle_input_tokens(request_context& now) {
  const auto body = now.proxy.responses.expand(now.client_id(), read_json(now));
  auto turn = std::move(openai_responses::parse(body, {}).turns.front());
  if (turn.model.empty()) turn.model = now.settings->default_model;
  const auto count = count_tokens(now, turn, anthropic_messages::make_body(turn));
  answer_json(now, json::object({{"object", "response.input_tokens"}, {"input_tokens", count}}));
}

/// The id of `/responses/ID` and `/responses/ID/cancel`.
inline std::string response_id(const request_context& now, std::string_view tail = {}) {
  const auto id = last_of_path(now);
  return id.substr(0, id.size() - tail.size());
}

inline api_error no_response(const std::string& id) {
  return {error_kind::not_found, "Response with id '" + text::repair_utf8(id) + "' not found"};
}

inline void handle_response(request_context& now) {
  const auto id = response_id(now);
  const auto kept = now.proxy.responses.get(now.client_id(), id);
  if (!kept) throw no_response(id);
  answer_json(now, *kept);
}

inline void handle_input_items(request_context& now) {
  const auto id = response_id(now, "/input_items");
  const auto items = now.proxy.responses.input_items(now.client_id(), id);
  if (!items) throw no_response(id);
  const bool newest_first = now.parameter("order") != "asc";
  answer_json(now,
              render_items(*items, newest_first, now.parameter("limit"), now.parameter("after")));
}

inline void handle_delete_response(request_context& now) {
  const auto id = response_id(now);
  if (!now.proxy.responses.remove(now.client_id(), id)) throw no_response(id);
  answer_json(now, json::object({{"id", id}, {"object", "response"}, {"deleted", true}}));
}

inline void handle_cancel_response(request_context& now) {
  const auto id = response_id(now, "/cancel");
  const auto kept = now.proxy.responses.cancel(now.client_id(), id);
  if (!kept) throw no_response(id);
  answer_json(now, *kept);
}

/// A model as it is listed, by the name that the operator or the CLI has for it.
inline model_entry describe_model(const request_context& now, const cli_facts& facts,
                                  const std::string& model) {
  const auto* alias = find_alias(*now.settings, model);
  const auto found = facts.claude_required.find(facts.resolve(alias ? alias->model : model));
  const bool known = found != facts.claude_required.end();
  return {model, release_time(model), known ? found->second : std::string()};
}

/// What this claude cannot use comes last, so that no client takes it for the default.
inline std::vector<model_entry> catalog(const request_context& now) {
  const auto facts = now.proxy.status.get();
  auto entries = make_catalog(*now.settings, facts.models);
  for (auto& entry : entries) entry = describe_model(now, facts, entry.id);
  std::stable_partition(entries.begin(), entries.end(),
                        [](const model_entry& entry) { return entry.claude_required.empty(); });
  return entries;
}

inline void handle_models(request_context& now) {
  if (!speaks_anthropic(now)) return answer_json(now, render_models(catalog(now)));
  const auto parameter = [&](const char* name) { return now.parameter(name); };
  answer_json(now, render_model_page(catalog(now), parameter("limit"), parameter("after_id"),
                                     parameter("before_id")));
}

/// Any id is passed on to the CLI, so any is described.
inline void handle_model(request_context& now) {
  const json id = last_of_path(now);
  const auto model = parse_model(reader(id, "model"));
  const auto entry = describe_model(now, now.proxy.status.get(), model);
  answer_json(now, speaks_anthropic(now) ? render_page_model(entry) : render_model(entry));
}

inline void handle_ollama_models(request_context& now) {
  answer_json(now, ollama::render_models(catalog(now)));
}

inline void handle_ollama_model(request_context& now) {
  const auto body = read_json(now);
  const reader root(body);
  const auto name = root.find(root.find("model") ? "model" : "name");  // as older clients call it
  const auto model = take_alias(now, parse_model(name ? *name : root.require("model")));
  answer_json(now, ollama::render_model({model, release_time(model), {}},
                                        traits_of(model, now.proxy.status.get().always_thinking)));
}

/// Which models this machine holds in its memory: none.
inline void handle_loaded_models(request_context& now) {
  answer_json(now, ollama::render_models({}));
}

inline void handle_ollama_version(request_context& now) {
  answer_json(now, json::object({{"version", ollama::version}}));
}

inline void handle_sessions(request_context& now) {
  answer_json(now, render_sessions(now.proxy.sessions.list(now.client_id())));
}

inline void handle_session_stats(request_context& now) {
  answer_json(now, render_session_stats(now.proxy.sessions.list(now.client_id()),
                                        now.settings->session_ttl));
}

inline api_error no_session() { return {error_kind::not_found, "Session not found"}; }

inline void handle_session(request_context& now) {
  const auto kept = now.proxy.sessions.get(now.client_id(), last_of_path(now));
  if (!kept) throw no_session();
  answer_json(now, render_session(*kept));
}

inline void handle_delete_session(request_context& now) {
  const auto id = last_of_path(now);
  if (!now.proxy.sessions.remove(now.client_id(), id)) throw no_session();
  answer_json(now, json::object({{"message", "Session " + id + " deleted successfully"}}));
}

/// What of a chat request would be honoured.
inline void handle_compatibility(request_context& now) {
  const auto body = read_json(now);
  auto turn = openai_chat::parse(body, make_context(now)).turns.front();
  complete_request(now, turn);
  answer_json(now, openai_chat::render_compatibility(body, turn.ignored_params));
}

inline void handle_tools(request_context& now) { answer_json(now, render_known_tools()); }

inline void handle_tool_configuration(request_context& now) {
  const auto session = now.parameter("session_id");
  answer_json(now, render_configuration(now.proxy.agents.configuration(now.client_id(), session)));
}

inline void handle_set_tool_configuration(request_context& now) {
  const auto body = read_json(now);
  const reader root(body);
  const auto session = root.find("session_id");
  answer_json(now, render_configuration(now.proxy.agents.configure(
                       now.client_id(), session ? parse_session_id(*session) : std::string(),
                       parse_names(root.find("allowed_tools")),
                       parse_names(root.find("disallowed_tools")))));
}

inline void handle_tool_stats(request_context& now) {
  answer_json(now, render_tool_stats(now.proxy.agents.configuration(now.client_id(), {}),
                                     now.proxy.agents.session_configurations(now.client_id())));
}

inline void handle_mcp_servers(request_context& now) {
  answer_json(now, render_mcp_servers(now.proxy.agents.servers(now.client_id())));
}

inline void handle_mcp_stats(request_context& now) {
  answer_json(now, render_mcp_stats(now.proxy.agents.servers(now.client_id())));
}

inline void handle_add_mcp_server(request_context& now) {
  const auto body = read_json(now);
  auto server = parse_mcp_server(reader(body));
  const auto confirmation = "MCP server '" + server.name + "' registered successfully";
  now.proxy.agents.add_server(now.client_id(), std::move(server));
  answer_json(now, json::object({{"message", confirmation}}));
}

inline void handle_connect_mcp_server(request_context& now) {
  const auto body = read_json(now);
  const auto name = reader(body).require("server_name").string();
  const auto server = now.proxy.agents.connect(now.client_id(), name, now.proxy.stop);
  answer_json(now, json::object({{"message", "Connected to MCP server '" + name + "'"},
                                 {"tools", server.tools},
                                 {"resources", server.resources},
                                 {"prompts", server.prompts}}));
}

inline void handle_disconnect_mcp_server(request_context& now) {
  const auto body = read_json(now);
  const auto name = reader(body).require("server_name").string();
  now.proxy.agents.disconnect(now.client_id(), name);
  now.proxy.processes.end_agents(now.client_id());
  answer_json(now, json::object({{"message", "Disconnected from MCP server '" + name + "'"}}));
}

inline void handle_auth_status(request_context& now) {
  answer_json(now, render_auth_status(*now.settings, now.proxy.status.get()));
}

inline void handle_health(request_context& now) {
  answer_json(now, render_health(now.proxy.processes.counts(), now.proxy.status.get(),
                                 !now.who.is_stranger && now.who.page_refusal.empty(),
                                 now.settings->demo, now.proxy.state.trouble()));
}

inline void handle_metrics(request_context& now) {
  gauges state{now.proxy.processes.counts(), now.proxy.sessions.size(),
               now.proxy.status.get().version, now.proxy.processes.programs().limits().all()};
  if (const auto trouble = now.proxy.state.trouble()) state.store_usable = trouble->empty();
  now.response.set_body(now.proxy.figures.render(state),
                        "text/plain; version=0.0.4; charset=utf-8");
}

/// `2026-11-30`, of UTC, as hours since 1970; nullopt for anything else.
inline std::optional<std::int64_t> try_day(const std::string& text) {
  std::tm day{};
  const char* end = ::strptime(text.c_str(), "%Y-%m-%d", &day);
  if (end == nullptr || *end != '\0') return std::nullopt;
  return ::timegm(&day) / 3'600;
}

inline void handle_usage(request_context& now) {
  now.proxy.state.require();
  if (!now.proxy.state.keeps_usage()) {
    throw api_error(error_kind::not_found, "usage is kept with --store only", "no_store");
  }
  const auto given = now.parameter("by");
  const auto by = given.empty() ? std::string("day") : given;
  constexpr std::array<const char*, 5> kinds = {"day", "key", "model", "dialect", "account"};
  if (std::find(kinds.begin(), kinds.end(), by) == kinds.end()) {
    throw bad_field("by", "must be day, key, model, dialect or account");
  }
  const auto day = now.parameter("from");
  const auto from = day.empty() ? now_ms() / ms_per_hour - 90 * 24 : try_day(day);
  if (!from) throw bad_field("from", "must be a day, such as 2026-11-30");
  auto usage = render_usage(by, *from, now.proxy.state.sum_usage(by, *from));
  if (const double price = now.settings->plan_price; price > 0) {
    const auto hours = static_cast<double>(now_ms()) / ms_per_hour - static_cast<double>(*from);
    const auto cost = price * 12 / (365 * 24) * std::max(hours, 0.0);
    double list_price = 0;
    for (const auto& row : now.proxy.state.sum_usage("account", *from)) {
      if (row.key == name_of(auth_method::cli)) list_price = row.usd;
    }
    usage["plan"] = json::object(
        {{"usd_per_month", price}, {"cost_usd", cost}, {"list_price_usd", list_price}});
  }
  answer_json(now, std::move(usage));
}

/// What has arrived, and whether it would be taken as a chat request.
inline void handle_debug(request_context& now) {
  const auto safe = redact(mask_fields(read_body(now)));
  json headers = json::object();
  for (const auto& [name, value] : now.client.head().fields) {
    headers[text::to_lower(name)] = is_secret_name(name) ? "***" : text::repair_utf8(redact(value));
  }
  json info =
      json::object({{"headers", headers},
                    {"method", now.method},
                    {"url", text::repair_utf8(redact(mask_query(now.client.head().target)))},
                    {"raw_body", text::repair_utf8(safe)}});
  info.update(openai_chat::render_diagnosis(safe));
  info["debug_mode_enabled"] = now.settings->log.wants(log_level::debug);
  answer_json(now, json::object({{"debug_info", info}}));
}

/// The page for a browser, and a word for other clients that look whether somebody is there.
/// Clients of Ollama wait for its own words.
inline void handle_root(request_context& now) {
  constexpr const char* plain = "text/plain; charset=utf-8";
  auto& response = now.response;
  if (now.header("Accept").find("text/html") != std::string::npos) {
    const auto nonce = text::random_id("", 24);
    response.set("Content-Security-Policy", page::content_security_policy(nonce));
    response.set("Referrer-Policy", "no-referrer");
    response.set_body(page::render(nonce, !now.settings->api_keys.empty()),
                      "text/html; charset=utf-8");
    return;
  }
  auto place = printable(now.client.head().authority);
  const auto agent = text::to_lower(now.header("User-Agent"));
  if (text::ends_with(place, ":11434") || agent.find("ollama") != agent.npos) {
    return response.set_body("Ollama is running", plain);
  }
  if (place.empty()) place = "HOST:PORT";
  response.set_body(
      "claude-openai " CLAUDE_OPENAI_VERSION
      ": point an OpenAI client at /v1 of this address, an Anthropic client at this address.\n\n"
      "  curl " +
          std::string(now.settings->tls_certificate.empty() ? "http://" : "https://") + place +
          "/v1/chat/completions \\\n"
          "    -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Say hello\"}]}'\n\n"
          "With a client key: -H \"Authorization: Bearer KEY\". A browser gets a page here.\n"
          "For clients that ask: Ollama is running.\n",
      plain);
}

inline void handle_version(request_context& now) {
  answer_json(now, json::object({{"version", CLAUDE_OPENAI_VERSION},
                                 {"service", "claude-openai"},
                                 {"api_version", "v1"}}));
}

// ---- from a request to its route --------------------------------------------------------------

using handler = void (*)(request_context&);

struct route {
  std::string_view method;
  std::string_view path;  ///< without `/v1`; see `matches`
  endpoint_group group;
  handler handle;
  access needs = access::own;
};

/// The first one that matches counts.
constexpr route all_routes[] = {
    {"POST", "/chat/completions", endpoint_group::chat, &answer_turn<openai_chat::dialect>,
     access::chat},
    {"POST", "/responses", endpoint_group::chat, &handle_responses, access::chat},
    {"POST", "/responses/input_tokens", endpoint_group::other, &handle_input_tokens},
    {"GET", "/responses/*/input_items", endpoint_group::session, &handle_input_items},
    {"POST", "/responses/*/cancel", endpoint_group::session, &handle_cancel_response},
    {"GET", "/responses/*", endpoint_group::session, &handle_response},
    {"DELETE", "/responses/*", endpoint_group::session, &handle_delete_response},
    {"POST", "/messages", endpoint_group::chat, &answer_turn<anthropic_messages::dialect>,
     access::chat},
    {"POST", "/messages/count_tokens", endpoint_group::other, &handle_count_tokens, access::chat},
    {"POST", "/completions", endpoint_group::chat, &answer_turn<openai_completions::dialect>,
     access::chat},
    {"POST", "/fim/completions", endpoint_group::chat,
     &answer_turn<openai_completions::fim_dialect>, access::chat},
    {"POST", "/api/chat", endpoint_group::chat, &answer_turn<ollama::chat_dialect>, access::chat},
    {"POST", "/api/generate", endpoint_group::chat, &answer_turn<ollama::generate_dialect>,
     access::chat},
    {"GET", "/api/tags", endpoint_group::none, &handle_ollama_models, access::chat},
    {"POST", "/api/show", endpoint_group::none, &handle_ollama_model, access::chat},
    {"GET", "/api/ps", endpoint_group::none, &handle_loaded_models, access::chat},
    {"GET", "/api/version", endpoint_group::health, &handle_ollama_version, access::open},
    {"GET", "/models", endpoint_group::none, &handle_models, access::chat},
    {"GET", "/models/*", endpoint_group::none, &handle_model, access::chat},
    {"GET", "/sessions", endpoint_group::session, &handle_sessions},
    {"GET", "/sessions/stats", endpoint_group::session, &handle_session_stats},
    {"GET", "/sessions/*", endpoint_group::session, &handle_session},
    {"DELETE", "/sessions/*", endpoint_group::session, &handle_delete_session},
    {"POST", "/compatibility", endpoint_group::other, &handle_compatibility, access::chat},
    {"POST", "/debug/request", endpoint_group::debug, &handle_debug},
    {"GET", "/tools", endpoint_group::other, &handle_tools, access::tools},
    {"GET", "/tools/config", endpoint_group::other, &handle_tool_configuration, access::tools},
    {"POST", "/tools/config", endpoint_group::other, &handle_set_tool_configuration, access::tools},
    {"GET", "/tools/stats", endpoint_group::other, &handle_tool_stats, access::tools},
    {"GET", "/mcp/servers", endpoint_group::other, &handle_mcp_servers, access::tools},
    {"POST", "/mcp/servers", endpoint_group::other, &handle_add_mcp_server, access::tools},
    {"POST", "/mcp/connect", endpoint_group::other, &handle_connect_mcp_server, access::tools},
    {"POST", "/mcp/disconnect", endpoint_group::other, &handle_disconnect_mcp_server,
     access::tools},
    {"GET", "/mcp/stats", endpoint_group::other, &handle_mcp_stats, access::tools},
    {"GET", "/auth/status", endpoint_group::auth, &handle_auth_status},
    {"GET", "/metrics", endpoint_group::none, &handle_metrics},
    {"GET", "/usage", endpoint_group::none, &handle_usage},
    {"GET", "/health", endpoint_group::health, &handle_health, access::open},
    {"GET", "/version", endpoint_group::health, &handle_version, access::open},
    {"GET", "/", endpoint_group::none, &handle_root, access::open},
};

/// A last '*' stands for anything, one within the path for anything without a slash.
inline bool matches(const route& row, std::string_view path) {
  const auto star = row.path.find('*');
  if (star == std::string_view::npos) return row.path == path;
  const auto stem = row.path.substr(0, star);
  const auto tail = row.path.substr(star + 1);
  if (path.size() <= stem.size() + tail.size() || !text::starts_with(path, stem)) return false;
  const auto rest = path.substr(stem.size());
  if (tail.empty()) return true;
  return rest.find('/') == rest.size() - tail.size() && rest.substr(rest.find('/')) == tail;
}

/// As clients write it.
inline std::string public_path(std::string_view path) {
  return (is_ollama(path) ? "" : "/v1") + std::string(path);
}

/// Endpoints of other servers that clients ask for, and what to do without them.
inline std::string advice_for(std::string_view path) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 10> advices = {{
      {"/api/embed /api/embeddings /embeddings",
       "Claude has no embedding model; run a local one beside this proxy, such as Ollama's"},
      {"/api/pull /api/push /api/create /api/copy /api/delete /api/blobs",
       "models are no files here; /api/tags lists them"},
      {"/images", "Claude makes no images; it reads them in /v1/chat/completions"},
      {"/audio",
       "Claude neither hears nor speaks; transcribe first and send the text to "
       "/v1/chat/completions"},
      {"/moderations", "ask the model for a judgement in /v1/chat/completions"},
      {"/files /uploads", "send images and PDF files within the request, as base64"},
      {"/batches", "send the requests one by one; they are queued"},
      {"/messages/batches", "send the requests one by one to /v1/messages; they are queued"},
      {"/assistants /threads /conversations",
       "use previous_response_id in /v1/responses, or session_id in /v1/chat/completions"},
      {"/responses/compact",
       "send the whole input to /v1/responses, or have the model summarize it; the proxy shortens "
       "nothing"},
  }};
  for (const auto& [stems, advice] : advices) {
    for (const auto& stem : text::split(stems, ' ')) {
      if (path != stem && !text::starts_with(path, stem + "/")) continue;
      return public_path(stem) + " is not offered here: " + std::string(advice);
    }
  }
  return {};
}

inline const route* find_route(std::string_view method, std::string_view path) {
  if (method == "HEAD") method = "GET";
  for (const auto& row : all_routes) {
    if (row.method == method && matches(row, path)) return &row;
  }
  return nullptr;
}

[[noreturn]] inline void refuse_route(request_context& now) {
  std::vector<std::string> allowed;
  std::vector<std::string> known;
  for (const auto& row : all_routes) {
    if (matches(row, now.path)) allowed.emplace_back(row.method);
    known.push_back(std::string(row.method) + " " + public_path(row.path));
  }
  if (const auto advice = advice_for(now.path); !advice.empty()) {
    throw api_error(error_kind::not_found, advice);
  }
  if (allowed.empty()) {
    throw api_error(error_kind::not_found, "unknown path " + now.record->path +
                                               "; this server has " + text::join(known, ", "));
  }
  now.response.set("Allow", text::join(allowed, ", "));
  throw api_error(
      error_kind::method_not_allowed,
      "method " + now.method + " is not allowed here; use " + text::join(allowed, " or "));
}

/// The client's id if it is harmless to repeat, else a new one.
inline std::string request_id(const request_context& now) {
  const auto given = now.header("X-Request-Id");
  const bool keep = !given.empty() && given.size() <= 128 && text::is_alphanumeric(given, "-_.");
  return keep ? given : text::random_id("req_", 24);
}

/// Without `/v1`, without what Azure's clients put before it (`/openai/deployments/NAME`), and
/// without a last slash, but with one that was percent-encoded: it belongs to an id.
inline std::string canonical_path(request_context& now) {
  constexpr std::string_view azure = "/openai";
  constexpr std::string_view deployments = "/deployments/";
  std::string_view path = now.path;
  const auto target =
      std::string_view(now.client.head().target).substr(0, now.client.head().target.find('?'));
  const bool is_azure = text::starts_with(path, "/openai/");
  if (is_azure) path.remove_prefix(azure.size());
  // Twice where a client puts it before its own paths and the user has put it there, too.
  for (int i = 0; i < 2 && text::starts_with(path, "/v1/"); ++i) path.remove_prefix(3);
  if (const auto end = path.find('/', deployments.size());
      is_azure && text::starts_with(path, deployments) && end != path.npos) {
    now.deployment = path.substr(deployments.size(), end - deployments.size());
    path.remove_prefix(end);
  }
  const bool slash = !target.empty() && target.back() == '/';
  if (path.size() > 1 && slash) path.remove_suffix(1);
  return std::string(path);
}

inline void enter(request_context& now) {
  const bool preflight = now.method == "OPTIONS";
  const auto* found = find_route(now.method, now.path);
  const credentials shown{
      now.client.head().authority,
      now.header("Origin"),
      now.header("Authorization"),
      now.header(now.has_header("X-Api-Key") ? "X-Api-Key" : "Api-Key"),
      now.client.address() == "unix",
      now.settings->api_keys.empty() ? judge_user(now.client.user()) : peer_user::unknown};
  allow_origin(now, shown);
  const auto group = found == nullptr ? endpoint_group::other : found->group;
  if (found != nullptr) now.record->route = found->path;
  now.record->address = client_address(now.client.address(), now.all_values_of("x-forwarded-for"),
                                       now.settings->trusted_proxies);
  if (!preflight) count_request(now, group, counted_name(now));
  const auto needs = found == nullptr ? access::chat : found->needs;
  admit(now, shown, !preflight && needs != access::open);
  if (!preflight && !now.client_id().empty()) count_request(now, group, "key " + now.client_id());
  if (preflight) return;  // as 200: httplib tells a length of 0, which a 204 must not have
  if (found == nullptr) refuse_route(now);
  check_rights(now, needs);
  found->handle(now);
}

/// The one place where exceptions of a request end.
inline void answer_request(request_context& now) {
  now.proxy.figures.begin();
  auto& response = now.response;
  now.record->id = request_id(now);
  now.record->method = now.method;
  now.record->path = mask_query(printable(now.path.substr(0, 512)));
  response.set("x-request-id", now.id());
  response.set("openai-version", "2020-10-01");
  if (now.settings->demo) response.set("x-claude-demo", "true");
  try {
    now.path = canonical_path(now);
    if (speaks_anthropic(now)) response.set("request-id", now.id());
    enter(now);
  } catch (const api_error& error) {
    answer_error(now, error);
  } catch (const std::exception& fault) {
    now.settings->log.error("request " + now.id() + ": " + fault.what());
    answer_error(now, api_error(error_kind::internal, "internal error; see the proxy's log"));
  }
  const auto spent = std::chrono::steady_clock::now() - now.record->started;
  response.set(
      "openai-processing-ms",
      std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(spent).count()));
  response.set("X-Content-Type-Options", "nosniff");
  response.headers.try_emplace("Cache-Control", "no-store");
  now.record->status = response.status;
  if (!response.stream) finish(now.proxy, now.settings->log, *now.record);
}

}  // namespace routes

//================================================================================================
// [36] http - httplib's parser and writer around the routes
// uses: text, errors, log, openai_chat, options, http_head, connection, routes | thread-safe
//================================================================================================

/// httplib's parser, writer and nothing else: it neither listens nor makes threads here.
class http_server : public httplib::Server {
 public:
  explicit http_server(proxy_parts& proxy) : proxy_(proxy) {
    // Everything is answered here: httplib's own routes would read a body before we can look.
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      dispatch(request, response);
      return HandlerResponse::Handled;
    });
    svr_sock_ = 0;  // httplib cuts streams short while it thinks that it does not listen
    set_keep_alive_timeout(75);
    set_keep_alive_max_count(10'000);
    // What httplib alone refuses never reached `dispatch`, and is still without a body here. So is
    // the answer to a client that has left.
    set_error_handler([this](const httplib::Request&, httplib::Response& response) {
      if (!response.body.empty() || response.status == routes::status_client_left) return;
      const api_error error(error_kind::invalid_request, "this is not a valid HTTP request");
      response.set_content(refuse_http(*current(), error), routes::json_type);
    });
  }

  /// Serves one connection to its end, in this thread.
  void serve_connection(connection& client) {
    current() = &client;
    try {
      while (client.read_request()) {
        bool closed = false;
        const bool alive = process_one(client, closed, 0);
        if (client.took_much()) give_memory_back();
        if (!alive || closed || client.is_closing()) break;
      }
    } catch (const api_error& error) {  // it was no request
      const auto body = refuse_http(client, error);
      client.write_all(
          "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
          "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
          "Connection: close\r\nContent-Length: " +
          std::to_string(body.size()) + "\r\n\r\n" + body);
    }
    current() = nullptr;
    if (client.is_closing()) client.linger();
  }

  http_server(const http_server&) = delete;
  http_server& operator=(const http_server&) = delete;

 private:
  /// The body of the answer to what is no request.
  std::string refuse_http(connection& client, const api_error& error) const {
    client.close_after_reply();
    proxy_.figures.reject("http");
    proxy_.settings.get()->log.info("refused bad HTTP from " + client.address() + ": " +
                                    error.what());
    return openai_chat::render_error(error);
  }

  /// The connection that this thread serves: httplib hands it to no handler.
  static connection*& current() {
    thread_local connection* served = nullptr;
    return served;
  }

  /// Puts in the fields as they came. What httplib would do with some of them is not wanted:
  /// compress a stream, cut an answer into ranges, or wait for a body.
  static void prepare(httplib::Request& request) {
    for (const auto& [name, value] : current()->head().fields) {
      constexpr std::array<std::string_view, 7> ours = {
          "accept-encoding",   "range",      "content-type", "content-length",
          "transfer-encoding", "connection", "expect",
      };
      if (std::find(ours.begin(), ours.end(), text::to_lower(name)) == ours.end()) {
        request.headers.emplace(name, value);
      }
    }
    request.ranges.clear();
  }

  /// httplib up to 0.14.
  template <class Self = http_server>
  auto process_one(connection& client, bool& closed, int)
      -> decltype(std::declval<Self&>().process_request(client, false, closed,
                                                        std::function<void(httplib::Request&)>())) {
    return static_cast<Self*>(this)->process_request(client, is_stopping(), closed, prepare);
  }

  /// httplib from 0.15 on wants the addresses beside the stream.
  template <class Self = http_server>
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

  bool is_stopping() const { return proxy_.stop.is_raised(); }

  /// The heap would keep what a large request took.
  static void give_memory_back() {
#ifdef __GLIBC__
    ::malloc_trim(0);
#endif
  }

  void dispatch(const httplib::Request& request, httplib::Response& response) {
    auto& client = *current();
    request_context now{proxy_,       client,         request.method,
                        request.path, request.params, proxy_.settings.get()};
    routes::answer_request(now);
    auto& answered = now.response;
    response.status = answered.status;
    for (const auto& [name, value] : answered.headers) response.set_header(name, value);
    if (answered.stream) {
      set_stream(client, answered, response);
    } else if (!answered.body.empty()) {
      response.set_content(std::move(answered.body), answered.type);
    }
    // httplib tells the client by the request's own header, whatever version it is.
    if (client.is_closing()) {
      const_cast<httplib::Request&>(request).headers.emplace("Connection", "close");
    }
  }

  static void set_stream(connection& client, const http_response& answered,
                         httplib::Response& response) {
    const auto write = [stream = answered.stream](std::size_t, httplib::DataSink& sink) {
      const bool whole =
          stream([&](std::string_view bytes) { return sink.write(bytes.data(), bytes.size()); });
      if (whole) sink.done();
      return whole;
    };
    if (!client.head().http_1_0) {
      response.set_chunked_content_provider(answered.type, write);
    } else {  // which knows no chunks: the connection's end is the stream's
      client.close_after_reply();
      response.set_content_provider(answered.type, write);
    }
  }

  proxy_parts& proxy_;
};

//================================================================================================
// [37] server - the whole proxy as one object
// uses: text, log, options, ollama, cli_command, process, pool, store, sessions, responses,
//       engine, agents, status, http | owns threads
//================================================================================================

/// The path without links, and absolute; what is not there yet at least without `.` and `..`.
inline std::string real_path(const std::string& path) {
  std::error_code failed;
  const auto real = std::filesystem::weakly_canonical(std::filesystem::absolute(path), failed);
  return failed ? path : real.string();
}

/// What holds keys, logins or other clients' words, or is a way to this proxy as its own user.
inline void add_secret_paths(options& settings) {
  const auto home = value_or(settings.environment, "HOME", "/root");
  const auto folder = value_or(settings.environment, "CLAUDE_CONFIG_DIR", home + "/.claude");
  auto& paths = settings.secret_paths;
  auto store = is_redis(settings) ? std::string() : settings.store;
#ifdef CLAUDE_OPENAI_REDIS
  const auto server = is_redis(settings) ? parse_redis_address(settings.store) : redis_address{};
  if (server.port.empty()) store += server.host;  // its socket
#endif
  for (const auto& path :
       {settings.tls_key, settings.mcp_config, settings.session_directory, store,
        store + (store.empty() ? "" : "-wal"), store + (store.empty() ? "" : ".salt"),
        settings.unix_socket, std::string("/proc"), home + "/.claude.json",
        folder + "/.credentials.json", folder + "/settings.json", folder + "/projects"}) {
    if (!path.empty()) paths.push_back(path);
  }
  std::set<std::string> folders;
  for (auto& path : paths) {
    path = real_path(path);
    for (auto at = path.rfind('/'); at != path.npos && at > 0; at = path.rfind('/', at - 1)) {
      std::error_code failed;
      const auto above = path.substr(0, at);
      if (std::filesystem::is_directory(above, failed)) folders.insert(above);
    }
  }
  settings.secret_folders.assign(folders.begin(), folders.end());
}

/// To hide a secret that does not exist yet, bubblewrap makes an empty file in its place. Removes
/// those files at the end, after the last process.
class hidden_files {
 public:
  explicit hidden_files(const std::vector<std::string>& paths) {
    struct stat info {};
    for (const auto& path : paths) {
      if (::lstat(path.c_str(), &info) != 0) absent_.push_back(path);
    }
  }
  hidden_files(const hidden_files&) = delete;
  hidden_files& operator=(const hidden_files&) = delete;
  ~hidden_files() {
    struct stat info {};
    for (const auto& path : absent_) {
      const bool left = ::lstat(path.c_str(), &info) == 0 && info.st_size == 0 &&
                        info.st_mode == (S_IFREG | 0444U) && info.st_uid == ::geteuid();
      if (left) ::unlink(path.c_str());
    }
  }

 private:
  std::vector<std::string> absent_;
};

/// Without OpenSSL clients have no names that hold: those are an HMAC of their keys.
inline void add_store_problems([[maybe_unused]] const options& settings,
                               [[maybe_unused]] std::vector<std::string>& problems) {
#if !defined(CPPHTTPLIB_OPENSSL_SUPPORT) || !defined(CLAUDE_OPENAI_REDIS)
  if (is_redis(settings)) {
    problems.emplace_back(
        "--store redis:// needs a build with hiredis (CLAUDE_OPENAI_REDIS) and OpenSSL "
        "(CPPHTTPLIB_OPENSSL_SUPPORT)");
  }
#endif
#if !defined(CPPHTTPLIB_OPENSSL_SUPPORT) || !defined(CLAUDE_OPENAI_SQLITE)
  if (!store_path(settings).empty()) {
    problems.emplace_back(
        "--store FILE and --session-dir need a build with SQLite (CLAUDE_OPENAI_SQLITE) and "
        "OpenSSL "
        "(CPPHTTPLIB_OPENSSL_SUPPORT)");
  }
#endif
}

/// Fills in what is derived from the options and the machine. Throws `std::invalid_argument` for
/// options that cannot be run with.
inline options complete(options settings, std::optional<temporary_directory>& scratch) {
  auto problems = validate(settings);
  add_store_problems(settings, problems);
  if (settings.fallback) {
    if (resolve_auth(settings) != auth_method::cli) {
      problems.emplace_back("--fallback needs --auth-method cli: only a login has a plan");
    }
    for (const auto& one : missing_credentials(with_fallback(settings))) {
      problems.push_back("--fallback: " + one);
    }
  }
  const auto bedrock = auth_method::bedrock;
  if (settings.web && (resolve_auth(settings) == bedrock || settings.fallback == bedrock)) {
    problems.emplace_back("--web: Amazon Bedrock does not search the web");
  }
  if (!problems.empty()) throw std::invalid_argument(text::join(problems, "; "));
  auto& variables = settings.environment;
  const auto name = settings.claude_path.empty() ? "claude" : settings.claude_path;
  const auto path = find_program(name, variables);
  settings.claude_path = path.empty() ? name : std::filesystem::absolute(path).string();
  scratch.emplace(real_path(value_or(variables, "TMPDIR", "/tmp")));
  if (settings.working_directory.empty()) settings.working_directory = scratch->path();
  for (auto* place : {&settings.working_directory, &settings.session_directory, &settings.store}) {
    const bool is_url = place == &settings.store && is_redis(settings);
    if (!place->empty() && !is_url) *place = real_path(*place);
  }
  for (auto& directory : settings.agent_directories) directory = real_path(directory);
  variables["TMPDIR"] = scratch->path();  // sockets and files of `claude` go with us
  add_secret_paths(settings);
  return settings;
}

/// The URL leads to the proxy itself, which listens at `port`.
inline bool is_own_address(const std::string& url, const options& settings, int port) {
  auto place = url.substr(url.find("//") == url.npos ? 0 : url.find("//") + 2);
  place = place.substr(0, place.find_first_of("/?#"));
  place = place.substr(place.rfind('@') + 1);
  const auto given = text::try_number<int>(place.substr(place.find_last_of(":]") + 1));
  if (given.value_or(text::starts_with(url, "https:") ? 443 : 80) != port) return false;
  const auto name = host_name(place);
  const auto is_any = [](const std::string& host) { return host == "0.0.0.0" || host == "::"; };
  const bool loops = is_any(name) || is_loopback_name(name);
  if (!is_any(settings.host)) {
    return name == text::to_lower(settings.host) || (loops && is_loopback_name(settings.host));
  }
  try {
    return !listen_on(name, 0).empty();  // only at an address of this machine
  } catch (const std::system_error&) {
    return false;
  }
}

/// Listens at the port of the options, or at the first free one of eleven when none was asked for.
/// Throws `std::system_error`.
inline std::vector<unique_fd> listen_on_free_port(const options& settings) {
  const bool only_one = settings.port_required || settings.port == 0;
  const int last = only_one ? settings.port : std::min(settings.port + 10, 65535);
  for (int port = settings.port;; ++port) {
    try {
      return listen_on(settings.host, port);
    } catch (const std::system_error& failure) {
      if (failure.code().value() != EADDRINUSE || only_one) throw;
      if (port < last) continue;
      throw std::system_error(failure.code(), "the ports " + std::to_string(settings.port) +
                                                  " to " + std::to_string(last) +
                                                  " are all taken; choose one with --port");
    }
  }
}

/// Throws `std::invalid_argument` when `claude` would ask the proxy, which would ask `claude`.
inline void require_other_api(const options& settings, int port) {
  const auto* variable = address_variable(resolve_auth(settings));
  const auto url = value_or(settings.environment, variable);
  if (url.empty() || settings.demo || !settings.tcp || !is_own_address(url, settings, port)) return;
  throw std::invalid_argument(std::string(variable) +
                              " leads to this proxy, which would call itself. That address is for "
                              "clients; start the proxy without the variable");
}

inline std::shared_ptr<const tls_context> make_tls(const options& settings) {
  if (settings.tls_certificate.empty()) return nullptr;
  return std::make_shared<const tls_context>(settings.tls_certificate, settings.tls_key);
}

/// Looks at the CLI in the background, since the port is open long before; and again as long as
/// there is a problem, for the user may install it or log in meanwhile, until it has named its
/// account, and when its program has changed.
class cli_inspector {
 public:
  cli_inspector(const options& settings, proxy_parts& parts) : settings_(settings), parts_(parts) {}

  /// Until `closing` is raised. `on_news` gets the facts at first and when they have changed.
  void run(const wake_signal& closing, const std::function<void(const cli_facts&)>& on_news) {
    constexpr std::chrono::seconds pause{30};
    program_file inspected;
    steady_time again{};
    for (bool first = true;; first = false) {
      const auto current = parts_.processes.programs().current().file;
      const auto before = parts_.status.get();
      const bool done = before.problem.empty() && before.logged_in;
      const bool due = !done && std::chrono::steady_clock::now() >= again;
      const bool rejected = parts_.processes.programs().warning() != before.warning;
      if (first || due || rejected || current != inspected) {
        const auto facts = inspect(closing);
        parts_.status.set(facts);
        const bool news = first || facts.problem != before.problem ||
                          facts.warning != before.warning || facts.version != before.version ||
                          facts.logged_in != before.logged_in;
        if (news) call_back(settings_.log, on_news, facts);
        if (first && facts.too_old) return;
        // A process that died while it was asked, or none in time, is soon asked again.
        const bool unlucky = !facts.version.empty() && !facts.logged_in;
        const std::chrono::seconds soon{facts.problem.empty() ? 10 : 2};
        again = std::chrono::steady_clock::now() + (unlucky ? soon : pause);
      }
      inspected = current;
      pollfd entry{closing.fd(), POLLIN, 0};
      if (::poll(&entry, 1, 2'000) > 0) return;
    }
  }

 private:
  cli_facts inspect(const wake_signal& closing) {
    auto& programs = parts_.processes.programs();
    for (auto own = settings_;;) {
      const auto program = programs.current();
      own.claude_path = program.path;
      auto facts = inspect(own, closing);
      if (closing.is_raised()) return facts;
      if (facts.version.empty() || facts.too_old) programs.reject(program.file, facts.problem);
      facts.warning = programs.warning();
      if (programs.current().file == program.file) return facts;
    }
  }

  cli_facts inspect(const options& settings, const wake_signal& closing) {
    cli_facts facts;
    try {
      inspect_version(settings, *parts_.guard, closing, facts);
      if (!facts.problem.empty()) return facts;
      const auto now = parts_.settings.get();
      parts_.processes.keep_spares(now->default_model);
      inspect_account(*now, parts_.processes, closing, facts);
      const bool none = facts.logged_in == false && resolve_auth(settings) == auth_method::cli;
      if (none && boolean_of(ask_login(settings, *parts_.guard, closing), "loggedIn")) {
        facts.problem = login_unread;
      }
    } catch (const api_error& failure) {  // busy processes are no problem of the CLI's
      if (failure.kind != error_kind::rate_limited) facts.problem = failure.message;
    } catch (const std::system_error& failure) {
      facts.problem = is_missing(failure) ? say_missing(settings) : failure.what();
    } catch (const std::exception& failure) {
      facts.problem = failure.what();
    }
    return facts;
  }

  const options& settings_;
  proxy_parts& parts_;
};

/// The connections that are served, each in a thread of its own.
class connection_set {
 public:
  connection_set(const options& settings, http_server& http, metrics& figures)
      : settings_(settings), http_(http), figures_(figures), tls_(make_tls(settings)) {}

  /// For connections from now on.
  void set_tls(std::shared_ptr<const tls_context> tls) {
    const std::lock_guard<std::mutex> lock(mutex_);
    tls_ = std::move(tls);
  }

  /// Accepts a connection and serves it, until it ends or `closing` is raised.
  void accept(int listener, const wake_signal& closing) {
    auto socket = accept_from(listener);
    if (!socket) {
      // Out of descriptors or memory: the connection stays in the queue, and is tried again.
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!make_room()) return figures_.reject("connections");
    try {
      // TLS is for the port: a user who can open the unix socket could read this memory, too.
      const bool in_clear = peer_address(socket.get()) == "unix";
      clients_.push_back(
          std::make_unique<connection>(std::move(socket), in_clear ? nullptr : tls_, closing));
    } catch (const std::exception& failure) {
      return settings_.log.error(std::string("no connection: ") + failure.what());
    }
    const auto client = std::prev(clients_.end());
    try {
      std::thread([this, client] { serve(client); }).detach();
    } catch (const std::exception& failure) {
      clients_.erase(client);
      settings_.log.error(std::string("no thread for a connection: ") + failure.what());
    }
  }

  /// Waits for the threads. At the drain timeout, at a further `stop`, or now if `at_once`, `cut`
  /// is raised, and answers end with an error; what is still there a moment later is shut, as if
  /// the client had left.
  void drain(bool at_once, wake_signal& stop, wake_signal& cut) {
    if (empty()) return;
    settings_.log.info("stopping; what still runs has " +
                       std::to_string(settings_.drain_timeout.count() / 1000) +
                       " s, or until a second signal");
    if (!at_once) wait_until_empty(settings_.drain_timeout, &stop);
    if (empty()) return;
    cut.raise();
    wait_until_empty(std::chrono::milliseconds(300));
    while (!empty()) {
      shut_all();
      wait_until_empty(std::chrono::milliseconds(100));
    }
  }

 private:
  using client_list = std::list<std::unique_ptr<connection>>;

  /// At most so long; a `stop` ends the wait, and is taken back.
  void wait_until_empty(std::chrono::milliseconds most, wake_signal* stop = nullptr) {
    const auto until = std::chrono::steady_clock::now() + most;
    while (!empty() && std::chrono::steady_clock::now() < until) {
      std::array<pollfd, 2> fds{
          {{all_gone_.fd(), POLLIN, 0}, {stop == nullptr ? -1 : stop->fd(), POLLIN, 0}}};
      ::poll(fds.data(), fds.size(), poll_timeout(until));
      all_gone_.clear();
      if (stop != nullptr && stop->clear() > 0) return;
    }
  }

  void shut_all() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& client : clients_) ::shutdown(client->fd(), SHUT_RDWR);
  }

  /// At max_connections, closes the connection that has been idle longest. Its thread is on its way
  /// out for a moment, which is why the new one is let in. False when none is idle.
  bool make_room() {
    const auto most = static_cast<std::size_t>(settings_.max_connections);
    if (clients_.size() < most) return true;
    const auto longest =
        std::min_element(clients_.begin(), clients_.end(), [](const auto& left, const auto& right) {
          const auto order = [](const auto& one) {  // those at work come last
            const auto since = one->waiting_since();
            return since == 0 ? std::numeric_limits<std::int64_t>::max() : since;
          };
          return order(left) < order(right);
        });
    if ((*longest)->waiting_since() == 0 || clients_.size() >= 2 * most) return false;
    ::shutdown((*longest)->fd(), SHUT_RDWR);
    return true;
  }

  void serve(client_list::iterator client) {
    try {
      http_.serve_connection(**client);
    } catch (const std::exception& fault) {  // one connection's trouble is not the others'
      settings_.log.error(std::string("a connection ended: ") + fault.what());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    clients_.erase(client);
    if (clients_.empty()) all_gone_.raise();
  }

  bool empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return clients_.empty();
  }

  const options& settings_;
  http_server& http_;
  metrics& figures_;
  wake_signal all_gone_;
  std::mutex mutex_;                        ///< guards all below
  std::shared_ptr<const tls_context> tls_;  ///< null: none
  client_list clients_;
};

struct server_signals {
  wake_signal stop;     ///< `run` is to end
  wake_signal reload;   ///< the options are to be loaded anew
  wake_signal closing;  ///< raised once, for the connections
  wake_signal cut;      ///< raised once: answers end with an error
};

struct open_listeners {
  std::vector<unique_fd> sockets;
  bool bound = false;
  int port = 0;                   ///< 0: none yet, or a unix socket only
  bool owns_socket_file = false;  ///< of the unix socket
};

/// The proxy. Construct, then `start` and `wait`, or `run`; `stop` from another thread or a signal
/// handler. Callbacks are set before; what they throw is logged.
class server {
 public:
  /// Throws `std::invalid_argument` for options that cannot be run with, `std::runtime_error` for a
  /// certificate or a stored salt that cannot be used, and `std::system_error` when the working
  /// directory cannot be made.
  explicit server(options settings)
      : settings_(prepare(std::move(settings), scratch_)),
        parts_(settings_, *scratch_, signals_.closing, signals_.cut, on_answer),
        http_(parts_),
        connections_(settings_, http_, parts_.figures) {}
  server(const server&) = delete;
  server& operator=(const server&) = delete;
  /// Stops what `start` began, and waits for it.
  ~server() {
    stop();
    wait();
    close_listeners();
  }

  /// Opens the port, see `listen_on_free_port`, and the unix socket; `start` and `run` do it where
  /// it was not done. Throws `std::system_error`, and `std::invalid_argument` when the API's
  /// address is this one.
  void bind() {
    if (std::exchange(listening_.bound, true))
      throw std::logic_error("the server is bound already");
    if (settings_.tcp) {
      listening_.sockets = listen_on_free_port(settings_);
      listening_.port = port_of(listening_.sockets.front());
    }
    if (settings_.ollama) listen_for_ollama();
    require_other_api(settings_, port());
    if (settings_.unix_socket.empty()) return;
    listening_.sockets.push_back(listen_at(settings_.unix_socket));
    listening_.owns_socket_file = true;
  }

  /// The port that `bind` opened; 0 where there is none but the unix socket.
  int port() const {
    if (settings_.tcp && listening_.port == 0)
      throw std::logic_error("the server has no port before `bind`");
    return listening_.port;
  }

  /// `http://127.0.0.1:8000`, or the path of the unix socket when there is no port.
  std::string url() const {
    if (!settings_.tcp) return "unix:" + settings_.unix_socket;
    const bool any = settings_.host == "0.0.0.0" || settings_.host == "::";
    const auto host = any ? std::string("localhost") : settings_.host;
    const bool v6 = host.find(':') != std::string::npos;
    const char* scheme = settings_.tls_certificate.empty() ? "http://" : "https://";
    return scheme + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port());
  }

  /// As they were at the start.
  const options& settings() const { return settings_; }

  /// What Claude Code's tools can reach here, in a line. The first call may take some 20 ms.
  std::string confinement() {
    return describe_confinement(settings_, parts_.agents.sandbox_problem());
  }
  cli_facts facts() const { return parts_.status.get(); }

  /// Called in a thread of `run` when `claude` was looked at, and when its problem has changed.
  std::function<void(const cli_facts&)> on_inspected;

  /// Called in the request's thread when it has been answered; should be quick.
  std::function<void(const request_figures&)> on_answer;

  /// Called in `run` after `request_reload`, to load the options anew and `reload` them. Should it
  /// throw, that is logged and everything stays as it was.
  std::function<void()> on_reload;

  /// Takes over what may change while the proxy runs: keys, limits, origins, the default model, and
  /// the content of the TLS files. Throws, and changes nothing, when they cannot be run with, or no
  /// client key is left.
  void reload(const options& fresh) {
    auto next = fresh;
    next.host = settings_.host;  // which stay as they are, and decide what keys are needed
    next.tcp = settings_.tcp;
    const auto problems = validate(next);
    if (!problems.empty()) throw std::invalid_argument(text::join(problems, "; "));
    const bool had_key = !parts_.settings.get()->api_keys.empty() || !is_private(settings_);
    if (fresh.api_keys.empty() && had_key) {
      throw std::invalid_argument(
          "without a client key the proxy would be open; restart it if that is meant");
    }
    auto tls = make_tls(settings_);
    std::set<std::string> revoked;
    for (const auto& key : parts_.settings.get()->api_keys)
      revoked.insert(parts_.names.name_of(key));
    for (const auto& key : fresh.api_keys) revoked.erase(parts_.names.name_of(key));
    parts_.settings.take(fresh);
    if (!revoked.empty()) forget(revoked);
    if (parts_.status.get().logged_in) parts_.processes.keep_spares(fresh.default_model);
    parts_.processes.share_between(fresh.api_keys.size());
    connections_.set_tls(std::move(tls));
  }

  /// Serves until `stop`. Requests that run then are finished, for up to the drain timeout; a
  /// second `stop` ends them at once. A server runs once.
  void run() {
    begin();
    serve();
  }

  /// The same in a thread of its own; returns when clients can connect.
  void start() {
    begin();
    runner_ = std::thread([this] { serve(); });
  }

  /// Waits for the end of what `start` began.
  void wait() {
    if (runner_.joinable()) runner_.join();
  }

  /// Ends `run`, or what `start` began. Safe in a signal handler.
  void stop() noexcept { signals_.stop.raise(); }

  /// Asks for a call of `on_reload`. Safe in a signal handler.
  void request_reload() noexcept { signals_.reload.raise(); }

 private:
  /// Another program may have the address: Ollama itself, or this proxy already.
  void listen_for_ollama() {
    const std::string place = "127.0.0.1:" + std::to_string(ollama::port);
    try {
      for (auto& socket : listen_on("127.0.0.1", ollama::port)) {
        listening_.sockets.push_back(std::move(socket));
      }
      settings_.log.info("listening at " + place + ", too");
    } catch (const std::system_error& failure) {
      if (listening_.port == ollama::port) return;
      settings_.log.warning("not listening at " + place + " (" + failure.code().message() +
                            "): clients of Ollama need the address " + url());
      return;
    }
    require_other_api(settings_, ollama::port);
  }

  void begin() {
    if (std::exchange(begun_, true)) throw std::logic_error("a server runs only once");
    if (!listening_.bound) bind();
  }

  void serve() {
    parts_.processes.start();
    std::thread inspector(
        [this] { cli_inspector(settings_, parts_).run(signals_.closing, on_inspected); });
    const auto stops = accept_connections();
    accept_waiting();
    close_listeners();
    signals_.closing.raise();
    connections_.drain(stops > 1, signals_.stop, signals_.cut);
    inspector.join();
  }

  /// Accepts who has connected already: their requests would be lost with the listeners.
  void accept_waiting() {
    for (const auto& listener : listening_.sockets) {
      pollfd entry{listener.get(), POLLIN, 0};
      for (int left = 1'000; left > 0 && ::poll(&entry, 1, 0) > 0; --left) {
        connections_.accept(listener.get(), signals_.closing);
      }
    }
  }

  /// What clients left whose keys are no longer valid ends.
  void forget(const std::set<std::string>& clients) {
    parts_.processes.forget(clients);
    parts_.sessions.forget(clients);
    parts_.responses.forget(clients);
    parts_.agents.forget(clients);
  }

  /// The file goes first, and only once: the next proxy may have one of that name at any time.
  void close_listeners() {
    if (std::exchange(listening_.owns_socket_file, false)) ::unlink(settings_.unix_socket.c_str());
    listening_.sockets.clear();
  }

  static options prepare(options settings, std::optional<temporary_directory>& scratch) {
    settings = complete(std::move(settings), scratch);
    if (settings.api_keys.empty() && !is_private(settings)) {
      make_key(settings);
    }
    return settings;
  }

  /// Returns how often `stop` was called.
  std::size_t accept_connections() {
    std::vector<pollfd> entries{{signals_.stop.fd(), POLLIN, 0}, {signals_.reload.fd(), POLLIN, 0}};
    for (const auto& listener : listening_.sockets) entries.push_back({listener.get(), POLLIN, 0});
    constexpr std::chrono::minutes expiry_interval{1};
    auto expiry = std::chrono::steady_clock::now() + expiry_interval;
    for (;;) {
      const int ready =
          ::poll(entries.data(), static_cast<nfds_t>(entries.size()), poll_timeout(expiry));
      if (std::chrono::steady_clock::now() >= expiry) {
        parts_.sessions.expire();
        parts_.responses.expire();
        parts_.agents.expire();
        expiry = std::chrono::steady_clock::now() + expiry_interval;
      }
      if (ready <= 0) continue;
      if (const auto stops = entries[0].revents != 0 ? signals_.stop.clear() : 0) return stops;
      if (entries[1].revents != 0) load_anew();
      for (std::size_t i = 2; i < entries.size(); ++i) {
        if (entries[i].revents != 0) connections_.accept(entries[i].fd, signals_.closing);
      }
    }
  }

  void load_anew() {
    signals_.reload.clear();
    try {
      if (on_reload) on_reload();
      settings_.log.info(
          "loaded anew: keys, limits, budgets, extra usage, origins, proxies, default model, "
          "aliases, log level and TLS files; other settings need a restart");
    } catch (const std::exception& failure) {
      settings_.log.error(std::string("the settings stay as they were: ") + failure.what());
    }
  }

  open_listeners listening_;
  bool begun_ = false;
  std::optional<temporary_directory> scratch_;
  const options settings_;
  const hidden_files hidden_{settings_.secret_paths};
  server_signals signals_;
  proxy_parts parts_;
  http_server http_;
  connection_set connections_;
  std::thread runner_;  ///< of `start`
};

//================================================================================================
// [38] doctor - is everything there that answers need?
// uses: text, errors, json_access, options, conversation, events, cli_command, process, pool,
//       store, sessions, engine, status, transport, server | one thread
//================================================================================================

/// One thing that was looked at.
struct finding {
  std::string what;
  bool good = false;
  std::string detail;
  std::string remedy;  ///< what to do when it is not good
};

/// Who may connect, with what proof.
inline std::vector<finding> review_access(const options& settings) {
  const bool keyless = settings.api_keys.empty();
  const bool local = is_private(settings);
#ifdef __linux__
  const bool tells_users = true;
#else
  const bool tells_users = !settings.tcp;
#endif
  std::size_t shortest = 1'000;
  for (const auto& key : settings.api_keys) shortest = std::min(shortest, key.size());
  const bool clear = !local && settings.tls_certificate.empty();
  const auto& origins = settings.cors_origins;
  return {
      {"who can connect", local, local ? "this machine" : "whoever reaches " + settings.host,
       "listen on loopback, or let a firewall choose"},
      {"client key", !keyless || !local || tells_users,
       !keyless ? std::to_string(settings.api_keys.size()) + " set, of " +
                      std::to_string(shortest) + " characters or more"
       : !local      ? std::string("none set: one is made at the start")
       : tells_users ? std::string("none: only programs of this user and root are served")
                     : std::string("none: every user of this machine is served"),
       "set one with --api-key or API_KEY"},
      {"encryption", !clear,
       clear   ? "none: keys and prompts can be read on the way"
       : local ? "not needed on this machine"
               : "TLS",
       "use --tls-cert and --tls-key, or a proxy in front that speaks TLS"},
      {"web pages", std::find(origins.begin(), origins.end(), "*") == origins.end(),
       origins.empty() ? "pages of this machine may chat, the proxy's own page may use tools"
                       : "pages of " + text::join(origins, ", ") + " may chat and use tools",
       "name the origins that need it (--cors-origin)"},
      {"log", !settings.log_bodies,
       settings.log_bodies ? "holds prompts and answers" : "holds no prompts and no keys",
       "remove --log-bodies"},
  };
}

/// Agents can reach the home directory, or all of the disk, by a directory that they are given.
inline bool is_wide(const std::string& directory, const options& settings) {
  const auto given = std::filesystem::absolute(directory).lexically_normal() / "";
  const auto home = std::filesystem::path(value_or(settings.environment, "HOME", "/root")) / "";
  return text::starts_with(home.string(), given.string());
}

/// What a client can do on this machine once it is let in.
inline std::vector<finding> review_tools(const options& settings, const std::string& problem) {
  if (!settings.builtin_tools) {
    return {{"Claude Code's tools", true, "lent to nobody (--no-builtin-tools)", {}}};
  }
  const bool confined = settings.sandbox == sandbox_use::on ||
                        (settings.sandbox == sandbox_use::automatic && problem.empty());
  const auto& allowed = settings.allowed_tools;
  auto places = settings.agent_directories;
  places.insert(places.end(), settings.agent_roots.begin(), settings.agent_roots.end());
  if (!settings.working_directory.empty()) places.push_back(settings.working_directory);
  const bool wide = std::any_of(places.begin(), places.end(),
                                [&](const auto& place) { return is_wide(place, settings); });
  return {
      {"Claude Code's tools",
       true,
       "lent to those who may chat: " + (allowed.empty() ? "all" : text::join(allowed, ", ")),
       {}},
      {"confinement", confined, describe_confinement(settings, problem),
       "install bubblewrap, and remove --sandbox off; or --no-builtin-tools"},
      {"agents' directories", !wide,
       places.empty() ? "a private one for each client" : text::join(places, ", "),
       "name directories that hold nothing secret (--cwd, --add-dir, --allowed-cwd)"},
      {"network of commands", !settings.sandbox_network,
       settings.sandbox_network ? "open, servers of this machine included" : "none where confined",
       "remove --sandbox-network"},
      {"tools without a key", !settings.allow_keyless_tools,
       settings.allow_keyless_tools ? "also where the system does not tell which user asks"
       : settings.api_keys.empty()  ? "to this user's programs"
                                    : "to nobody",
       "remove --allow-keyless-tools"},
      {"permission mode", settings.permission_mode != "bypassPermissions",
       "at most " + settings.permission_mode, "--permission-mode default"},
      {"MCP servers", !settings.allow_mcp_registration,
       settings.allow_mcp_registration ? "clients may add their own, which are commands"
       : settings.mcp_config.empty()   ? "none"
                                       : "those of " + settings.mcp_config,
       "remove --allow-mcp-registration"},
  };
}

/// What the settings leave open, a line each; `good` where no more is open than needs be.
/// `sandbox_problem` is `try_sandbox`'s.
inline std::vector<finding> review_security(const options& settings,
                                            const std::string& sandbox_problem = {}) {
  auto found = review_access(settings);
  for (auto& more : review_tools(settings, sandbox_problem)) found.push_back(std::move(more));
  return found;
}

/// See `try_sandbox`, of options that no proxy runs with. Throws as `complete` does.
inline std::string look_at_sandbox(const options& settings) {
  std::optional<temporary_directory> scratch;
  const auto completed = complete(settings, scratch);
  return try_sandbox(completed, child_guard(&*scratch));
}

/// Looks at the CLI, its login, the port, the temporary directory, a spare's start and one real
/// answer, which costs as much as a word does. Tells each finding as it comes.
class doctor {
 public:
  doctor(options settings, std::function<void(const finding&)> tell)
      : settings_(std::move(settings)), tell_(std::move(tell)) {}

  /// True when nothing is wrong.
  bool run() {
    if (!check_settings()) return false;
    check_port();
    check_transport();
    check_temporary_directory();
    check_store();
    check_sandbox();
    if (!check_cli()) return false;
    check_login();
    if (!check_spare()) return false;
    check_answers();
    if (settings_.fallback) check_fallback();
    cli_facts facts;
    inspect_account(settings_, *processes_, stop_, facts);
    const auto* lifetime = facts.has_cache_ttl
                               ? "as a request asks"
                               : "this claude cannot choose it; x-ignored-params says so";
    if (facts.logged_in) tell({"cache lifetime", true, lifetime, {}});
    return all_ok_;
  }

 private:
  void tell(const finding& found) {
    all_ok_ = all_ok_ && found.good;
    tell_(found);
  }

  bool check_settings() {
    try {
      settings_ = complete(std::move(settings_), scratch_);
      require_other_api(settings_, settings_.port);
      guard_ = std::make_shared<child_guard>(&*scratch_);
      return true;
    } catch (const std::exception& failure) {
      tell({"settings", false, failure.what(), "see --print-config, and TMPDIR"});
      return false;
    }
  }

  void check_sandbox() {
    const auto problem = try_sandbox(settings_, *guard_);
    const bool needed = settings_.builtin_tools && settings_.sandbox == sandbox_use::on;
    tell({"tools", !needed || problem.empty(), describe_confinement(settings_, problem),
          "install bubblewrap, or choose --sandbox auto"});
  }

  /// Only looks: a proxy may be using the store, and the trial below stores nothing.
  void check_store() {
    if (is_redis(settings_)) check_redis();
    const auto path = store_path(settings_);
    if (path.empty()) return;
    try {
      if (!settings_.session_directory.empty()) session_files::list(settings_.session_directory);
      auto above = std::filesystem::path(path);  // or where it is made
      while (!std::filesystem::exists(above)) above = above.parent_path();
      if (::access(above.c_str(), W_OK) != 0) {
        throw std::system_error(last_system_error(), above.string() + " cannot be written to");
      }
      const bool made = above == path;
      tell({"store",
            true,
            path + (made ? ", " + std::to_string(std::filesystem::file_size(path) / 1024) + " KiB"
                         : ", made at the start"),
            {}});
    } catch (const std::exception& failure) {
      tell({"store", false, failure.what(), "choose another --store or --session-dir"});
    }
    settings_.store.clear();
    settings_.session_directory.clear();
  }

  void check_redis() {
#ifdef CLAUDE_OPENAI_REDIS
    const auto address = redis_address_of(settings_);
    try {
      redis_connection::connect(address);
      tell({"store", true, address.name(), {}});
    } catch (const std::exception& failure) {
      tell({"store", false, address.name() + " cannot be used: " + failure.what(),
            "start Redis there, or see --store"});
    }
#endif
    settings_.store.clear();
  }

  void check_transport() {
    if (!settings_.tls_certificate.empty()) {
      try {
        const tls_context tls(settings_.tls_certificate, settings_.tls_key);
        tell({"TLS", true, settings_.tls_certificate, {}});
      } catch (const std::exception& failure) {
        tell(
            {"TLS", false, failure.what(), "name a certificate and its own key, without a phrase"});
      }
    }
    if (settings_.unix_socket.empty()) return;
    try {
      listen_at(settings_.unix_socket);
      ::unlink(settings_.unix_socket.c_str());
      tell({"unix socket", true, settings_.unix_socket + " can be made", {}});
    } catch (const std::system_error& failure) {
      tell({"unix socket", false, failure.what(), "end what uses it, or choose another path"});
    }
  }

  void check_port() {
    if (!settings_.tcp) return;
    const auto place = settings_.host + ":" + std::to_string(settings_.port);
    try {
      listen_on(settings_.host, settings_.port);
      tell({"port", true, place + " is free", {}});
    } catch (const std::system_error& failure) {
      const bool busy = failure.code().value() == EADDRINUSE;
      if (busy && !settings_.port_required) {
        tell({"port", true, place + " is in use; the proxy would take the next free one", {}});
        return;
      }
      tell({"port", false, failure.what(),
            "choose another --port or --host, or end what listens there (is this the proxy?)"});
    }
  }

  void check_temporary_directory() {
    constexpr std::uintmax_t enough = 100ULL * 1024 * 1024;
    std::error_code failed;
    const auto room = std::filesystem::space(scratch_->path(), failed);
    const bool good = !failed && room.available >= enough;
    tell({"temporary directory", good,
          scratch_->path() + ", " + std::to_string(room.available / (1024 * 1024)) + " MiB free",
          "make room, or set TMPDIR to a directory with more"});
  }

  bool check_cli() {
    cli_facts facts;
    try {
      inspect_version(settings_, *guard_, stop_, facts);
    } catch (const std::exception& failure) {
      facts.problem = failure.what();
    }
    const bool good = facts.problem.empty();
    cli_programs programs(settings_, guard_);
    const bool reads_login = resolve_auth(settings_) == auth_method::cli;
    const auto flag = reads_login ? programs.login_flag_of(programs.current()) : std::string();
    const auto known = settings_.claude_path + ", " + facts.version +
                       (flag.empty() ? std::string() : ", with " + flag + " to read the login");
    tell({"claude", good, good ? known : facts.problem,
          "install it with `npm install -g @anthropic-ai/claude-code@latest`, or name it with "
          "--claude-path"});
    return good;
  }

  void check_login() {
    const auto method = std::string(name_of(resolve_auth(settings_)));
    const auto missing = missing_credentials(settings_);
    const auto answer = ask_login(settings_, *guard_, stop_);
    const bool logged_in = answer.is_object() ? boolean_of(answer, "loggedIn") : missing.empty();
    const auto as = string_of(answer, "authMethod");
    tell({"login", logged_in && missing.empty(),
          method + ", by " + credential_source(settings_) + (as.empty() ? "" : " (" + as + ")") +
              (missing.empty() ? "" : ": " + text::join(missing, "; ")) + "; billed to " +
              payer_of(settings_) +
              (settings_.fallback
                   ? ", and while the plan is used up to " + payer_of(with_fallback(settings_))
                   : ""),
          method == "cli" ? "run `claude auth login` as this user, or set ANTHROPIC_API_KEY"
                          : "set what is missing, or choose another --auth-method"});
  }

  static std::string in_ms(steady_time since) {
    using namespace std::chrono;
    return std::to_string(duration_cast<milliseconds>(steady_clock::now() - since).count()) + " ms";
  }

  bool check_spare() {
    settings_.spares = 1;
    processes_.emplace(settings_, guard_);
    const auto begun = std::chrono::steady_clock::now();
    processes_->start();
    processes_->keep_spares(settings_.default_model);
    while (processes_->counts().warm == 0 &&
           std::chrono::steady_clock::now() < begun + std::chrono::seconds(20)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const bool good = processes_->counts().warm > 0;
    tell({"a process of claude", good, good ? "ready in " + in_ms(begun) : "not ready in 20 s",
          "run `claude` by hand and see what it says"});
    return good;
  }

  /// How it was answered.
  turn_facts ask(const char* text, turn_result& result, std::string& first,
                 bool by_fallback = false) {
    turn_request question;
    question.model = settings_.default_model;
    if (by_fallback) use_fallback(question, settings_);
    question.messages.push_back({role::user, {text_part{text}}});
    session_store sessions(settings_);
    engine turns(settings_, *processes_, sessions);
    std::vector<turn_request> requests;
    requests.push_back(std::move(question));
    const auto begun = std::chrono::steady_clock::now();
    const auto running = turns.start(std::move(requests), -1);
    collector gathered;
    answer::choice_event next;
    while (!running->ended() &&
           running->next(next, steady_time::max()) == answer::pulled::arrived) {
      if (first.empty() && std::holds_alternative<block_delta>(next.what)) first = in_ms(begun);
      gathered.add(next.what);
    }
    result = gathered.result();
    return running->facts();
  }

  /// Asks a question, and one that has nothing to do with it.
  void check_answers() {
    turn_result result;
    std::string first;
    const auto begun = std::chrono::steady_clock::now();
    try {
      ask("Say OK and nothing else.", result, first);
      tell({"an answer",
            true,
            "from " + result.model + ", first token in " + first + ", complete in " + in_ms(begun) +
                ", " + std::to_string(result.usage.prompt()) + " tokens in, " +
                std::to_string(result.usage.output) + " out",
            {}});
      const bool same = ask("Say YES and nothing else.", result, first).rewound > 0;
      tell({"another question",
            true,
            same ? "by the same process, which took back the first"
                 : "by another process: this claude cannot take messages back, so that each new "
                   "conversation takes one",
            {}});
    } catch (const api_error& failure) {
      tell({"an answer", false, failure.message,
            "see the message; with --log-level debug the proxy tells more"});
    }
  }

  void check_fallback() {
    turn_result result;
    std::string first;
    try {
      ask("Say OK and nothing else.", result, first, true);
      tell({"an answer of the fallback",
            true,
            "from " + result.model + ", first token in " + first,
            {}});
    } catch (const api_error& failure) {
      tell({"an answer of the fallback", false, failure.message,
            "see --fallback-model, and the variables of that account"});
    }
  }

  std::optional<temporary_directory> scratch_;
  options settings_;
  std::function<void(const finding&)> tell_;
  std::shared_ptr<const child_guard> guard_;
  wake_signal stop_;
  std::optional<pool> processes_;
  bool all_ok_ = true;
};

}  // namespace claude_openai

#endif  // CLAUDE_OPENAI_HPP
