// What the stand-in is made of below its protocol: directives, the files beside the program, and
// pipes that can be slow.
#pragma once

#include "stand_in_lines.hpp"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif

using lines::json;
using std::string;

// ---- directives --------------------------------------------------------------------------------

/// `name key=value key="two words"`
struct directive {
  string name;
  std::map<string, string> values;

  string word(const string& key, const string& fallback) const {
    const auto found = values.find(key);
    return found == values.end() ? fallback : found->second;
  }
  int number(const string& key, int fallback) const {
    const auto found = values.find(key);
    return found == values.end() ? fallback : std::atoi(found->second.c_str());
  }
};

inline directive parse_directive(std::string_view text) {
  directive parsed;
  string piece;
  bool quoted = false;
  const auto take = [&] {
    const auto equals = piece.find('=');
    if (parsed.name.empty())
      parsed.name = piece;
    else if (!piece.empty())
      parsed.values[piece.substr(0, equals)] = piece.substr(equals + 1);
    piece.clear();
  };
  for (const char c : text) {
    if (c == '"')
      quoted = !quoted;
    else if (std::isspace(static_cast<unsigned char>(c)) && !quoted)
      take();
    else
      piece += c;
  }
  take();
  return parsed;
}

inline std::vector<directive> find_directives(const string& text) {
  std::vector<directive> found;
  for (size_t at = 0; (at = text.find("[[", at)) != string::npos;) {
    const auto end = text.find("]]", at);
    if (end == string::npos) break;
    found.push_back(parse_directive(std::string_view(text).substr(at + 2, end - at - 2)));
    at = end + 2;
  }
  return found;
}

// ---- surroundings: the program's path, its .conf and its .journal -------------------------------

inline string program;
inline int journal = -1;

inline void sleep_ms(int ms) {
  if (ms > 0) ::poll(nullptr, 0, ms);
}

inline bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const auto written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EAGAIN) {
      pollfd writable{fd, POLLOUT, 0};
      ::poll(&writable, 1, 1000);
    } else if (written < 0 && errno != EINTR) {
      return false;
    } else if (written > 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    }
  }
  return true;
}

/// Async-signal-safe, as the handler of SIGTERM uses it.
inline void write_end_to_journal() {
  char line[32];
  char* at = line + sizeof line;
  for (const char* word = "\ndne "; *word != 0; ++word) *--at = *word;
  for (long pid = ::getpid(); pid != 0; pid /= 10) *--at = static_cast<char>('0' + pid % 10);
  if (journal >= 0 && ::write(journal, at, static_cast<size_t>(line + sizeof line - at)) < 0)
    return;
}

[[noreturn]] inline void leave(int status) {
  write_end_to_journal();
  ::_exit(status);
}

inline void on_terminate(int signal) { leave(128 + signal); }

inline string find_program(const char* argv0) {
#ifdef __linux__
  const auto* path = reinterpret_cast<const char*>(::getauxval(AT_EXECFN));
  if (path != nullptr && std::strchr(path, '/') != nullptr) return path;
#endif
  return argv0;
}

inline json environment_names() {
  auto names = json::array();
  for (char** entry = environ; *entry != nullptr; ++entry) {
    names.push_back(string(*entry, std::strcspn(*entry, "=")));
  }
  return names;
}

inline void open_journal(int argc, char** argv) {
  journal = ::open((program + ".journal").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (journal < 0) return;
  json about{{"ppid", ::getppid()}, {"pgid", ::getpgrp()}};
  about["argv"] = std::vector<string>(argv, argv + argc);
  about["environment"] = environment_names();
  write_all(journal, std::to_string(::getpid()) + " start " + about.dump() + "\n");
}

/// How many sessions the journal has seen up to this one.
inline int sessions_so_far() {
  std::ifstream file(program + ".journal");
  const auto own = std::to_string(::getpid()) + " start ";
  int count = 0;
  for (string line; std::getline(file, line);) {
    count += line.find(" start ") != string::npos && line.find("\"-p\"") != string::npos;
    if (line.rfind(own, 0) == 0) break;
  }
  return count;
}

inline std::map<string, directive> read_configuration() {
  std::map<string, directive> configuration;
  std::ifstream file(program + ".conf");
  for (string line; std::getline(file, line);) {
    const auto parsed = parse_directive(line);
    if (parsed.name == "until" && sessions_so_far() > parsed.number("n", 0)) configuration.clear();
    if (parsed.name == "answer") {
      configuration["answer"] = parse_directive(std::string_view(line).substr(line.find(' ') + 1));
    } else if (!parsed.name.empty()) {
      configuration[parsed.name] = parsed;
    }
  }
  return configuration;
}

// ---- output -------------------------------------------------------------------------------------

enum class pacing { line, byte, burst };

class output {
 public:
  void line(const json& value) {
    raw(value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n");
  }
  void raw(const string& bytes) {
    buffer_ += bytes;
    if (pace_ != pacing::burst) flush();
  }
  void pace(pacing value) {
    flush();
    pace_ = value;
  }
  void flush() {
    const auto step = pace_ == pacing::byte ? 1 : std::max<size_t>(buffer_.size(), 1);
    for (size_t at = 0; at < buffer_.size(); at += step) {
      if (!write_all(STDOUT_FILENO, std::string_view(buffer_).substr(at, step))) leave(1);
    }
    buffer_.clear();
  }

 private:
  string buffer_;
  pacing pace_ = pacing::line;
};

// ---- input --------------------------------------------------------------------------------------

class input {
 public:
  size_t chunk = 65536;
  int pause_ms = 0;
  bool ignore_eof = false;
  std::function<void()> before_reading_on;  ///< in a long line

  bool ended() const { return ended_; }
  bool waiting() const { return buffer_.find('\n') != string::npos; }

  /// The next line, or nothing when the time is over or stdin has ended. -1 waits for ever.
  std::optional<string> next_line(int timeout_ms) {
    const auto deadline = clock::now() + std::chrono::milliseconds(timeout_ms);
    for (size_t searched = 0;;) {
      const auto end = buffer_.find('\n', searched);
      if (end != string::npos) {
        auto line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      searched = buffer_.size();
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - clock::now());
      if (!read_more(timeout_ms < 0 ? -1 : std::max(0, static_cast<int>(left.count())))) return {};
    }
  }

 private:
  using clock = std::chrono::steady_clock;

  bool read_more(int timeout_ms) {
    if (ended_) {
      sleep_ms(timeout_ms < 0 ? 100 : timeout_ms);
      return false;
    }
    pollfd readable{STDIN_FILENO, POLLIN, 0};
    if (::poll(&readable, 1, timeout_ms) <= 0) return false;
    if (!buffer_.empty() && before_reading_on) before_reading_on();
    string bytes(chunk, '\0');
    const auto count = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    ended_ = count <= 0;
    buffer_.append(bytes, 0, count > 0 ? static_cast<size_t>(count) : 0);
    sleep_ms(pause_ms);
    return true;
  }

  string buffer_;
  bool ended_ = false;
};
