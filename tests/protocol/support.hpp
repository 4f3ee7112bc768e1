// What the protocol tests share: the stand-in in a folder of its own, counting what a test leaves
// behind, and a client that writes and reads a socket by hand.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

namespace protocol_test {

using namespace std::chrono_literals;
using json = nlohmann::ordered_json;
using steady = std::chrono::steady_clock;
using std::chrono::milliseconds;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int slowness = 4;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr int slowness = 4;
#else
constexpr int slowness = 1;
#endif
#else
constexpr int slowness = 1;
#endif

/// By how much later than on a quiet machine something may come.
constexpr int patience = 4 * slowness;

/// True as soon as `holds` is; false when it is not within the time.
template <typename Condition>
bool eventually(Condition holds, milliseconds within = 30s) {
  const auto deadline = steady::now() + within;
  while (!holds()) {
    if (steady::now() > deadline) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

inline milliseconds elapsed_since(steady::time_point start) {
  return std::chrono::duration_cast<milliseconds>(steady::now() - start);
}

// ---- what this process holds --------------------------------------------------------------------

inline int count_entries(const char* folder) {
  int count = 0;
  for (std::filesystem::directory_iterator at(folder), end; at != end; ++at) ++count;
  return count;
}

struct resources {
  int descriptors;
  int threads;
};

inline resources resources_now() {
  return {count_entries("/proc/self/fd"), count_entries("/proc/self/task")};
}

/// Processor time that this process has used.
inline milliseconds processor_time() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto of = [](const timeval& time) {
    return std::chrono::seconds(time.tv_sec) + std::chrono::microseconds(time.tv_usec);
  };
  return std::chrono::duration_cast<milliseconds>(of(used.ru_utime) + of(used.ru_stime));
}

/// The state letter of a process (`Z`: dead, but not reaped), 0 when there is none.
inline char process_state(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);
  const auto name_end = line.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= line.size() ? '\0' : line[name_end + 2];
}

/// How many processes of that group run (those that are dead and not reaped do not).
inline int members_of_group(pid_t group) {
  int count = 0;
  for (std::filesystem::directory_iterator at("/proc"), end; at != end; ++at) {
    const auto pid = std::atoi(at->path().filename().c_str());
    if (pid > 0 && ::getpgid(pid) == group) count += process_state(pid) != 'Z';
  }
  return count;
}

// ---- the stand-in -------------------------------------------------------------------------------

inline std::string stand_in_program() {
  if (const auto* told = std::getenv("STAND_IN")) return told;
  return std::filesystem::canonical("/proc/self/exe").parent_path().parent_path() / "stand-in";
}

/// A copy of the stand-in in a folder of its own, with its own configuration and journal. Whatever
/// it started is killed at the end; a test that cares asserts before that nothing is left.
class stand_in {
 public:
  explicit stand_in(const std::string& configuration = "") {
    char pattern[] = "/tmp/claude-openai-test-XXXXXX";
    REQUIRE(::mkdtemp(pattern) != nullptr);
    folder_ = pattern;
    std::error_code failed;
    std::filesystem::create_hard_link(stand_in_program(), path(), failed);
    if (failed) std::filesystem::copy_file(stand_in_program(), path());
    std::ofstream(path() + ".journal").flush();
    configure(configuration);
  }
  stand_in(const stand_in&) = delete;
  stand_in& operator=(const stand_in&) = delete;
  ~stand_in() {
    for (const auto pid : sessions()) {
      if (is_ours(pid)) ::kill(pid, SIGKILL);
    }
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string path() const { return folder_ + "/claude"; }
  const std::string& folder() const { return folder_; }

  /// Holds for the processes that start from now on.
  void configure(const std::string& lines) const {
    std::ofstream(path() + ".conf.new") << lines << '\n';
    std::filesystem::rename(path() + ".conf.new", path() + ".conf");
  }

  /// What the processes in `-p` mode said at their start, in order, with their `pid`.
  std::vector<json> starts() const {
    std::vector<json> found;
    std::ifstream file(path() + ".journal");
    for (std::string line; std::getline(file, line);) {
      const auto brace = line.find('{');
      if (line.find(" start ") == std::string::npos || brace == std::string::npos) continue;
      auto about = json::parse(line.substr(brace), nullptr, false);
      if (about.is_discarded()) continue;  // being written
      const auto& argv = about["argv"];
      if (std::find(argv.begin(), argv.end(), "-p") == argv.end()) continue;
      about["pid"] = std::atoi(line.c_str());
      found.push_back(about);
    }
    return found;
  }

  std::vector<pid_t> sessions() const {
    std::vector<pid_t> pids;
    for (const auto& about : starts()) pids.push_back(about["pid"].get<pid_t>());
    return pids;
  }

  int started() const { return static_cast<int>(sessions().size()); }

  /// Those that still run.
  std::vector<pid_t> live() const {
    std::vector<pid_t> pids;
    for (const auto pid : sessions()) {
      if (process_state(pid) != 'Z' && is_ours(pid)) pids.push_back(pid);
    }
    return pids;
  }

  /// Those that are dead and not reaped.
  int zombies() const {
    int count = 0;
    for (const auto pid : sessions()) count += process_state(pid) == 'Z';
    return count;
  }

  /// True when every process is gone and reaped, or is within the time.
  bool gone() const {
    return eventually([&] { return live().empty() && zombies() == 0; });
  }

 private:
  bool is_ours(pid_t pid) const {
    std::error_code failed;
    const auto program =
        std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/exe", failed);
    return !failed && program == path();
  }

  std::string folder_;
};

/// Counts live stand-ins from outside, all the time, and keeps the most it saw.
class watcher {
 public:
  explicit watcher(const stand_in& watched) : thread_([this, &watched] { watch(watched); }) {}
  ~watcher() { stop(); }
  watcher(const watcher&) = delete;
  watcher& operator=(const watcher&) = delete;

  int most() {
    stop();
    return max_;
  }
  int rounds() const { return rounds_; }

 private:
  void watch(const stand_in& watched) {
    while (!stopping_) {
      max_ = std::max(max_, static_cast<int>(watched.live().size()));
      ++rounds_;
      std::this_thread::sleep_for(1ms);
    }
  }
  void stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
  }

  std::atomic<bool> stopping_{false};
  std::atomic<int> rounds_{0};
  int max_ = 0;
  std::thread thread_;
};

/// The text with a directive for the stand-in around it: `[[text n=3]]`.
inline std::string told(const std::string& wish) { return "[[" + wish + "]]"; }

// ---- a client that sees every byte --------------------------------------------------------------

struct http_answer {
  int status = 0;
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string body;                            ///< without chunk framing
  bool complete = false;

  json parsed() const { return json::parse(body, nullptr, false); }
  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

class connection {
 public:
  explicit connection(int port) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    const int on = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  ~connection() { close(); }
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;

  bool connected() const { return connected_; }
  const std::string& received() const { return received_; }

  void close() {
    if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  }
  /// Leaves with a reset instead of a goodbye.
  void abort() {
    const linger at_once{1, 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close();
  }
  void finish_writing() const { ::shutdown(socket_, SHUT_WR); }

  bool write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const auto sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
  }

  void post(const std::string& path, const std::string& body,
            const std::string& headers = "") const {
    write("POST " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" +
          headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  void get(const std::string& path) const {
    write("GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
  }

  /// Reads until the text is there. False when it does not come in time, or the peer closed.
  bool wait_for(std::string_view text, milliseconds within = 10s) {
    const auto deadline = steady::now() + within;
    while (received_.find(text) == std::string::npos) {
      if (!read_some(deadline)) return false;
    }
    return true;
  }

  /// Reads one whole answer (to its length, its last chunk, or the end of the connection).
  http_answer answer(milliseconds within = 20s) {
    const auto deadline = steady::now() + within;
    http_answer got;
    while (received_.find("\r\n\r\n") == std::string::npos) {
      if (!read_some(deadline)) return got;
    }
    const auto head_end = received_.find("\r\n\r\n") + 4;
    read_head(received_.substr(0, head_end), got);
    const bool chunked = got.header("transfer-encoding") == "chunked";
    const auto length = got.header("content-length");
    const auto whole = length.empty() ? 0 : static_cast<std::size_t>(std::stoul(length));
    for (;;) {
      const auto rest = std::string_view(received_).substr(head_end);
      if (chunked)
        got.complete = decode_chunks(rest, got.body);
      else if (!length.empty())
        got.complete = rest.size() >= whole;
      if (got.complete || !read_some(deadline)) break;
    }
    if (!chunked) got.body = received_.substr(head_end, length.empty() ? std::string::npos : whole);
    if (got.complete) received_.clear();
    return got;
  }

  /// True when the peer has closed, or does so within the time.
  bool closed_by_peer(milliseconds within = 30s) {
    const auto deadline = steady::now() + within;
    while (read_some(deadline)) {
    }
    return ended_;
  }

 private:
  bool read_some(steady::time_point deadline) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady::now()).count();
    pollfd readable{socket_, POLLIN, 0};
    if (left <= 0 || ::poll(&readable, 1, static_cast<int>(left)) <= 0) return false;
    char bytes[65536];
    const auto count = ::recv(socket_, bytes, sizeof bytes, 0);
    ended_ = count <= 0;
    if (count > 0) received_.append(bytes, static_cast<std::size_t>(count));
    return count > 0;
  }

  static void read_head(const std::string& head, http_answer& got) {
    std::istringstream lines(head);
    std::string line;
    std::getline(lines, line);
    got.status = line.size() > 12 ? std::atoi(line.c_str() + 9) : 0;
    while (std::getline(lines, line) && line != "\r") {
      const auto colon = line.find(": ");
      if (colon == std::string::npos) continue;
      auto name = line.substr(0, colon);
      std::transform(name.begin(), name.end(), name.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      got.headers[name] = line.substr(colon + 2, line.size() - colon - 3);
    }
  }

  /// True when the last chunk is there.
  static bool decode_chunks(std::string_view rest, std::string& body) {
    body.clear();
    for (;;) {
      const auto line_end = rest.find("\r\n");
      if (line_end == std::string_view::npos) return false;
      const auto size = std::strtoul(std::string(rest.substr(0, line_end)).c_str(), nullptr, 16);
      rest.remove_prefix(line_end + 2);
      if (size == 0) return rest.find("\r\n") != std::string_view::npos;
      if (rest.size() < size + 2) {
        body += rest.substr(0, size);
        return false;
      }
      body += rest.substr(0, size);
      rest.remove_prefix(size + 2);
    }
  }

  int socket_;
  bool connected_ = false;
  bool ended_ = false;
  std::string received_;
};

}  // namespace protocol_test
