// What the tests of agents share: a registry with its options in a folder of its own, what a client
// may ask of it, and an MCP server in a few lines of shell.
#pragma once

#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include "tests/support.hpp"

namespace agents_test {

using namespace claude_openai;
namespace files = std::filesystem;
using strings = std::vector<std::string>;

inline std::string contents_of(const std::string& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path).rdbuf();
  return bytes.str();
}

/// A private directory that goes with the test.
class folder {
 public:
  folder() {
    char pattern[] = "/tmp/claude-openai-unit-XXXXXX";
    REQUIRE(::mkdtemp(pattern) != nullptr);
    path_ = files::canonical(pattern).string();
  }
  folder(const folder&) = delete;
  folder& operator=(const folder&) = delete;
  ~folder() {
    std::error_code ignored;
    files::remove_all(path_, ignored);
  }

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(*this / name) << bytes;
    return *this / name;
  }

 private:
  std::string path_;
};

/// A registry of its own, made after the settings are.
struct fixture {
  fixture() {
    settings.environment["TMPDIR"] = scratch.path();
    settings.allow_mcp_registration = true;
  }

  agent_registry& agents() {
    if (!registry) registry.emplace(settings, scratch.path(), guard);
    return *registry;
  }

  turn_request request(const std::string& client = "me", const std::string& session = "") const {
    turn_request made;
    made.client = client;
    made.session = session;
    made.agent.emplace();
    return made;
  }

  agent_request settled(const agent_headers& asked = {}, const std::string& client = "me",
                        const std::string& session = "") {
    auto made = request(client, session);
    agents().authorize(made, asked);
    return *made.agent;
  }

  error_kind refused(const agent_headers& asked) {
    return test::error_of([&] { settled(asked); }).kind;
  }

  folder scratch;
  options settings;
  child_guard guard;
  std::optional<agent_registry> registry;
};

inline agent_headers asking_tools(const std::string& list) {
  agent_headers asked;
  asked.allowed_tools = list;
  return asked;
}
inline agent_headers asking_not(const std::string& list) {
  agent_headers asked;
  asked.disallowed_tools = list;
  return asked;
}
inline agent_headers asking_mode(const std::string& mode) {
  agent_headers asked;
  asked.permission_mode = mode;
  return asked;
}
inline agent_headers asking_turns(const std::string& turns) {
  agent_headers asked;
  asked.max_turns = turns;
  return asked;
}
inline agent_headers asking_directory(const std::string& path) {
  agent_headers asked;
  asked.directory = path;
  return asked;
}

inline mcp_server server_of(const std::string& body) {
  const auto parsed = claude_openai::json::parse(body);
  return parse_mcp_server(reader(parsed));
}

inline strings names_of(const std::vector<mcp_server>& servers) {
  strings names;
  for (const auto& server : servers) names.push_back(server.name);
  return names;
}

// ---- MCP servers -------------------------------------------------------------------------------

/// A server in a few lines of shell: `answers` are cases of the method asked for, in which $id is
/// the question's. What it was told goes to the file `told` beside it.
inline std::string shell_server(const folder& place, const std::string& answers) {
  const auto path = place.write("server.sh", R"(#!/bin/sh
while read -r line; do
  echo "$line" >> ")" + place.path() + R"(/told"
  rest=${line#*\"id\":}; id=${rest%%,*}
  rest=${line#*\"method\":\"}; method=${rest%%\"*}
  case $method in
)" + answers + R"(
  esac
done
)");
  ::chmod(path.c_str(), 0700);
  return path;
}

inline std::string answers(const std::string& method, const std::string& result) {
  return method + R"() echo '{"jsonrpc":"2.0","id":'$id',"result":)" + result + R"(}' ;;)" + "\n";
}

inline const std::string hello =
    answers("initialize", R"({"capabilities":{"tools":{},"prompts":{}}})");

}  // namespace agents_test
