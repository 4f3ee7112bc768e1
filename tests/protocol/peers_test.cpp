// Whose process is at the other end of a connection, what a child is handed over in pipes, and what
// ends with a client's key.
#include "proxy_support.hpp"

#include <sys/resource.h>
#include <sys/un.h>

using namespace protocol_test;
using claude_openai::endpoint_of;
using claude_openai::listen_at;
using claude_openai::listen_on;
using claude_openai::peer_socket;
using claude_openai::peer_user;
using claude_openai::uid_of_peer;
using claude_openai::unique_fd;

namespace {

/// Both ends of a connection.
struct connected_pair {
  unique_fd client;
  unique_fd server;
};

unique_fd next_connection(const unique_fd& listener) {
  pollfd waiting{listener.get(), POLLIN, 0};
  REQUIRE(::poll(&waiting, 1, 10'000) == 1);
  return unique_fd(::accept(listener.get(), nullptr, nullptr));
}

connected_pair connect_to(const unique_fd& listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);
  connected_pair made;
  made.client = claude_openai::make_socket(address.ss_family);
  REQUIRE(::connect(made.client.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
  made.server = next_connection(listener);
  REQUIRE(made.server);
  return made;
}

/// Listens on loopback; none where that address does not exist.
std::optional<unique_fd> try_listen(const char* host) {
  try {
    auto listeners = listen_on(host, 0);
    return std::move(listeners.at(0));
  } catch (const std::system_error&) {
    return std::nullopt;
  }
}

void wait_for_end(const unique_fd& socket) {
  char byte = 0;
  pollfd readable{socket.get(), POLLIN, 0};
  REQUIRE(::poll(&readable, 1, 10'000) == 1);
  CHECK(::recv(socket.get(), &byte, 1, 0) <= 0);
}

void close_with_reset(unique_fd& socket) {
  const linger at_once{1, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  socket.reset();
}

#ifdef __linux__
struct both_searches {
  peer_socket asked;
  peer_socket read;
};

/// The same socket by the kernel's answer to a question and in its table as text.
both_searches search_for_peer(const unique_fd& socket) {
  const auto peer = endpoint_of(socket.get(), ::getpeername);
  const auto own = endpoint_of(socket.get(), ::getsockname);
  return {claude_openai::find_peer_socket(peer, own), claude_openai::find_peer_in_table(peer, own)};
}

/// The shortest of some times for a hundred questions.
steady::duration time_of_searches(const unique_fd& socket) {
  const auto peer = endpoint_of(socket.get(), ::getpeername);
  const auto own = endpoint_of(socket.get(), ::getsockname);
  auto shortest = steady::duration::max();
  for (int round = 0; round < 5; ++round) {
    const auto start = steady::now();
    for (int i = 0; i < 100; ++i) {
      REQUIRE(claude_openai::find_peer_socket(peer, own).result == peer_socket::search::found);
    }
    shortest = std::min(shortest, steady::now() - start);
  }
  return shortest;
}
#endif

claude_openai::command shell_with(const std::vector<std::string>& secrets,
                                  const std::string& script) {
  claude_openai::command made{{"/bin/sh", "-c", script}, {{"PATH", "/usr/bin:/bin"}}, "/"};
  for (const auto& secret : secrets) made.inherit(secret);
  return made;
}

}  // namespace

// ---- whose process asks ------------------------------------------------------------------------

TEST_CASE("peers: a connection of this user's own processes is known as such, by TCP and by unix") {
  for (const char* host : {"127.0.0.1", "::1"}) {
    CAPTURE(host);
    const auto listener = try_listen(host);
    if (!listener) {
      MESSAGE("skipped: there is no " << host);
      continue;
    }
    const auto pair = connect_to(*listener);
    CHECK(uid_of_peer(pair.server.get()) == ::geteuid());
  }
  const stand_in place;
  const auto path = place.folder() + "/socket";
  const auto listener = listen_at(path);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, path.size());
  const auto client = claude_openai::make_socket(AF_UNIX);
  REQUIRE(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  const auto server = next_connection(listener);
  CHECK(uid_of_peer(server.get()) == ::geteuid());
}

TEST_CASE("peers: root's and one's own processes are one's own, all others are another's") {
  CHECK(claude_openai::judge_user(::geteuid()) == peer_user::own);
  CHECK(claude_openai::judge_user(0) == peer_user::own);
  CHECK(claude_openai::judge_user(::geteuid() + 1) == peer_user::other);
  CHECK(claude_openai::judge_user(~uid_t{0}) == peer_user::other);
}

TEST_CASE(
    "peers: a socket that its process has closed is nobody's, whatever the kernel tells of it") {
  for (const char* host : {"127.0.0.1", "::1"}) {
    CAPTURE(host);
    const auto listener = try_listen(host);
    if (!listener) continue;
    auto closed = connect_to(*listener);
    closed.client.reset();
    wait_for_end(closed.server);
    CHECK(uid_of_peer(closed.server.get()) == claude_openai::nobody);
    auto reset = connect_to(*listener);
    close_with_reset(reset.client);
    wait_for_end(reset.server);
    CHECK(uid_of_peer(reset.server.get()) == claude_openai::nobody);
  }
  CHECK(uid_of_peer(-1) == claude_openai::nobody);
}

TEST_CASE("peers: one that has only finished writing is still its user's") {
  const auto listener = try_listen("127.0.0.1");
  REQUIRE(listener);
  const auto pair = connect_to(*listener);
  ::shutdown(pair.client.get(), SHUT_WR);
  wait_for_end(pair.server);
  CHECK(uid_of_peer(pair.server.get()) == ::geteuid());
}

#ifdef __linux__
TEST_CASE("peers: the kernel's answer and its table tell the same") {
  for (const char* host : {"127.0.0.1", "::1"}) {
    CAPTURE(host);
    const auto listener = try_listen(host);
    if (!listener) continue;
    auto pair = connect_to(*listener);
    const auto open = search_for_peer(pair.server);
    if (open.asked.result == peer_socket::search::failed) {
      MESSAGE("skipped: this system does not answer sock_diag questions");
      return;
    }
    CHECK(open.asked.result == peer_socket::search::found);
    CHECK(open.read.result == peer_socket::search::found);
    CHECK(open.asked.held);
    CHECK(open.read.held);
    CHECK(open.asked.user == ::geteuid());
    CHECK(open.read.user == ::geteuid());
    pair.client.reset();
    wait_for_end(pair.server);
    const auto closed = search_for_peer(pair.server);
    CHECK(closed.asked.result == closed.read.result);
    CHECK_FALSE(closed.asked.held);
    CHECK_FALSE(closed.read.held);
    auto other = connect_to(*listener);
    close_with_reset(other.client);
    const auto absent = endpoint_of(other.server.get(), ::getsockname);
    auto nowhere = absent;
    nowhere.port = htons(1);
    CHECK(claude_openai::find_peer_socket(nowhere, absent).result == peer_socket::search::absent);
    CHECK(claude_openai::find_peer_in_table(nowhere, absent).result == peer_socket::search::absent);
  }
}

TEST_CASE("peers: a socket that listens at a port is not the other end of a connection") {
  const auto listener = try_listen("127.0.0.1");
  REQUIRE(listener);
  const auto own = endpoint_of(listener->get(), ::getsockname);
  auto stranger = own;
  stranger.port = htons(1);
  const auto asked = claude_openai::find_peer_socket(own, stranger);
  CHECK(asked.result != peer_socket::search::found);
  CHECK(claude_openai::find_peer_in_table(own, stranger).result == peer_socket::search::absent);
}

TEST_CASE("peers: with thousands of connections open, one is found as fast as with a few") {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const auto before = limit;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  const auto room = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 25'000));
  const int wanted = std::min(10'000, (room - 500) / 2);
  const auto listener = try_listen("127.0.0.1");
  REQUIRE(listener);
  auto first = connect_to(*listener);
  if (search_for_peer(first.server).asked.result == peer_socket::search::failed) {
    MESSAGE("skipped: this system does not answer sock_diag questions");
    return;
  }
  const auto with_few = time_of_searches(first.server);
  std::vector<connected_pair> others;
  for (int i = 0; i < wanted; ++i) others.push_back(connect_to(*listener));
  const auto with_many = time_of_searches(first.server);
  CAPTURE(wanted);
  CHECK(uid_of_peer(others.back().server.get()) == ::geteuid());
  // A search through all of them would take hundreds of times as long.
  CHECK(with_many < 10 * with_few + 20ms * slowness);
  for (auto& pair : others) close_with_reset(pair.client);
  others.clear();
  ::setrlimit(RLIMIT_NOFILE, &before);
}
#endif

// ---- what a child is handed over ---------------------------------------------------------------

TEST_CASE("process: each secret can be read once, by its descriptor, and then it is gone") {
  const claude_openai::child_guard guard;
  const claude_openai::wake_signal never;
  const auto script = "cat <&3; echo '|'; cat <&4; echo '|'; cat <&3; cat <&4; echo '|'; env";
  const auto said =
      claude_openai::run_command(shell_with({"one\n", "two 'x'"}, script), guard, 30s, never);
  CHECK(said.output.find("one\n|\ntwo 'x'|\n|\n") == 0);
  CHECK(said.output.find("one", 4) == std::string::npos);
}

TEST_CASE("process: many secrets keep their order, and no other descriptor comes with them") {
  const claude_openai::child_guard guard;
  const claude_openai::wake_signal never;
  std::vector<std::string> secrets;
  std::string expected;
  for (int i = 0; i < 6; ++i) {
    secrets.push_back("secret " + std::to_string(i));
    expected += secrets.back() + "\n";
  }
  const auto script =
      "for n in 3 4 5 6 7 8; do eval \"cat <&$n\"; echo; done; ls /proc/self/fd | tr '\\n' ' '";
  const auto said = claude_openai::run_command(shell_with(secrets, script), guard, 30s, never);
  CHECK(said.output.find(expected) == 0);
  CHECK(said.output.substr(expected.size()) == "0 1 2 3 4 5 6 7 8 9 ");  // 9: ls's own
}

TEST_CASE("process: a secret is handed over whole, or the child is not started") {
  const claude_openai::child_guard guard;
  const claude_openai::wake_signal never;
  const auto before = resources_now();
  for (const std::size_t size : {std::size_t{0}, std::size_t{65'536}, std::size_t{300'000},
                                 std::size_t{1'048'577}, std::size_t{64'000'000}}) {
    CAPTURE(size);
    try {
      const auto said = claude_openai::run_command(
          shell_with({std::string(size, 'x')}, "cat <&3 | wc -c"), guard, 60s, never);
      CHECK(std::stoul(said.output) == size);
    } catch (const std::system_error& failure) {
      CHECK(size > 65'536);  // which the smallest pipe holds
      CHECK(std::string(failure.what()).find("do not fit") != std::string::npos);
    }
  }
  CHECK(resources_now().descriptors == before.descriptors);
}

// ---- a key that is no longer valid -------------------------------------------------------------

TEST_CASE("reload: of a client whose key is gone no process, session or response is left") {
  const stand_in program;
  auto settings = options_for(program);
  settings.api_keys = {"gone", "stays"};
  settings.idle_timeout = 600s;
  running_proxy proxy(settings);
  const auto header = [](const std::string& key) { return "x-api-key: " + key + "\r\n"; };
  const auto status = [&](const std::string& path, const std::string& key) {
    connection client(proxy.port());
    client.write("GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + header(key) + "\r\n");
    return client.answer().status;
  };
  std::map<std::string, std::string> responses;
  for (const std::string key : {"gone", "stays"}) {
    auto chat = chat_asking("text");
    chat["session_id"] = "chat";
    REQUIRE(proxy.ask("/v1/chat/completions", chat.dump(), header(key)).status == 200);
    const json asked{{"model", "claude-test"}, {"input", told("text")}};
    const auto answered = proxy.ask("/v1/responses", asked.dump(), header(key));
    REQUIRE(answered.status == 200);
    responses[key] = "/v1/responses/" + answered.parsed()["id"].get<std::string>();
    CHECK(status("/v1/sessions/chat", key) == 200);
    CHECK(status(responses[key], key) == 200);
  }
  const auto living = program.live();
  REQUIRE(living.size() == 2);  // each key's requests went through one process
  settings.api_keys = {"stays"};
  proxy.server().reload(settings);
  CHECK(eventually([&] { return program.live().size() == 1; }));
  CHECK(status("/v1/sessions/chat", "gone") == 401);
  settings.api_keys = {"gone", "stays"};
  proxy.server().reload(settings);
  CHECK(status("/v1/sessions/chat", "gone") == 404);
  CHECK(status(responses["gone"], "gone") == 404);
  CHECK(status("/v1/sessions/chat", "stays") == 200);
  CHECK(status(responses["stays"], "stays") == 200);
}
