// A redis-server of the tests' own, on a free port of loopback, without files.
#pragma once
#ifdef CLAUDE_OPENAI_REDIS
#include <arpa/inet.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "tests/support.hpp"

inline bool has_redis() {
  return !claude_openai::find_program("redis-server", {{"PATH", "/usr/bin:/usr/local/bin:/bin"}})
              .empty();
}

class redis_server {
 public:
  redis_server() : port_(free_port()) {
    const auto port = std::to_string(port_);
    std::vector<std::string> words{
        "redis-server", "--port", port,           "--bind", "127.0.0.1", "--save",   "",
        "--dir",        "/tmp",   "--appendonly", "no",     "--logfile", "/dev/null"};
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    REQUIRE(::posix_spawnp(&pid_, "redis-server", nullptr, nullptr, arguments.data(), environ) ==
            0);
    for (int tries = 0; !answers(); ++tries) {
      REQUIRE(tries < 3'000);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  redis_server(const redis_server&) = delete;
  redis_server& operator=(const redis_server&) = delete;
  ~redis_server() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  std::string url() const { return "redis://127.0.0.1:" + std::to_string(port_); }

  /// What a command answers, as another program sees it.
  claude_openai::redis_reply run(const std::vector<std::string>& words) const {
    const auto context =
        claude_openai::redis_connection::connect(claude_openai::parse_redis_address(url()));
    std::vector<const char*> bytes;
    std::vector<std::size_t> sizes;
    for (const auto& word : words) {
      bytes.push_back(word.data());
      sizes.push_back(word.size());
    }
    return claude_openai::redis_reply(static_cast<redisReply*>(::redisCommandArgv(
        context.get(), static_cast<int>(words.size()), bytes.data(), sizes.data())));
  }

 private:
  static int free_port() {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    ::bind(fd, reinterpret_cast<const sockaddr*>(&address), size);
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
    ::close(fd);
    return ntohs(address.sin_port);
  }

  bool answers() const {
    try {
      claude_openai::redis_connection::connect(claude_openai::parse_redis_address(url()));
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  }

  int port_;
  pid_t pid_ = 0;
};
#endif
