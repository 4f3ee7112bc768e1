// Child processes: what they get, how they end, and that nothing of them stays.
#include "proxy_support.hpp"

using namespace protocol_test;
using claude_openai::child_guard;
using claude_openai::child_process;
using claude_openai::command;

namespace {

command shell(const std::string& script) {
  return {{"/bin/sh", "-c", script}, {{"PATH", "/usr/bin:/bin"}}, "/"};
}

claude_openai::command_output run_short(const command& what, const child_guard& guard,
                                        milliseconds timeout) {
  const claude_openai::wake_signal never;
  return claude_openai::run_command(what, guard, timeout, never);
}

/// A shell is not the fastest program, least of all under a sanitizer.
constexpr auto enough = 10s;

pid_t printed_pid(const std::string& output) { return std::atoi(output.c_str()); }

bool is_gone(pid_t pid) { return process_state(pid) == '\0'; }

/// An orphan: it is init's to reap.
bool is_dead(pid_t pid) { return is_gone(pid) || process_state(pid) == 'Z'; }

/// The child's first line of output.
std::string first_line(const child_process& child) {
  std::string bytes;
  eventually([&] {
    claude_openai::read_available(child.output.get(), bytes);
    return bytes.find('\n') != std::string::npos;
  });
  return bytes.substr(0, bytes.find('\n'));
}

}  // namespace

TEST_CASE("process: a short command's output, complaints and ending are told") {
  const child_guard guard;
  const auto said = run_short(shell("echo out; echo err >&2; exit 3"), guard, enough);
  CHECK(said.finished);
  CHECK(said.output == "out\n");
  CHECK(said.errors == "err\n");
  CHECK(said.ending == "exit code 3");
}

TEST_CASE("process: output of more than a pipe holds is read whole") {
  const child_guard guard;
  const auto said = run_short(shell("head -c 300000 /dev/zero | tr '\\0' x"), guard, enough);
  CHECK(said.finished);
  CHECK(said.output.size() == 300'000);
}

TEST_CASE("process: a command that prints without end is ended at its output's limit") {
  const child_guard guard;
  for (const std::string more : {"", " >&2"}) {
    const auto began = std::chrono::steady_clock::now();
    const auto said = run_short(shell("tr '\\0' x < /dev/zero" + more), guard, 60s);
    CHECK_FALSE(said.finished);
    CHECK(said.output.size() + said.errors.size() < 16'000'000);
    CHECK(std::chrono::steady_clock::now() - began < 30s);
  }
}

TEST_CASE("process: a death by signal is told as such") {
  const child_guard guard;
  CHECK(run_short(shell("kill -9 $$"), guard, enough).ending == "signal 9");
}

TEST_CASE("process: a command that runs too long is killed with its group") {
  const child_guard guard;
  const auto start = steady::now();
  const auto said = run_short(shell("sleep 60 & echo $!; wait"), guard, 300ms * slowness);
  CHECK_FALSE(said.finished);
  CHECK(elapsed_since(start) < 3s * patience);
  const auto grandchild = printed_pid(said.output);
  REQUIRE(grandchild > 0);
  CHECK(eventually([&] { return is_dead(grandchild); }));
}

TEST_CASE("process: a command that closes its streams and runs on is killed all the same") {
  const child_guard guard;
  const auto start = steady::now();
  CHECK_FALSE(run_short(shell("exec >&- 2>&-; sleep 60"), guard, 300ms).finished);
  CHECK(elapsed_since(start) < 3s * patience);
}

TEST_CASE("process: a command ends when its program does, not when its pipes do") {
  const child_guard guard;
  const auto start = steady::now();
  const auto said = run_short(shell("sleep 60 & echo $!"), guard, 30s);
  CHECK(said.finished);
  CHECK(elapsed_since(start) < 5s * patience);
  const auto grandchild = printed_pid(said.output);
  REQUIRE(grandchild > 0);
  CHECK(eventually([&] { return is_dead(grandchild); }));
}

TEST_CASE("process: a command ends at once when the program is told to stop") {
  const child_guard guard;
  const claude_openai::wake_signal stop;
  stop.raise();
  const auto start = steady::now();
  CHECK_FALSE(claude_openai::run_command(shell("sleep 60"), guard, 30s, stop).finished);
  CHECK(elapsed_since(start) < 2s * patience);
}

TEST_CASE("process: a program that is not there, or is none, cannot be started") {
  const child_guard guard;
  const auto before = resources_now();
  CHECK_THROWS_AS(run_short({{"/no/such/program"}, {}, "/"}, guard, enough), std::system_error);
  CHECK_THROWS_AS(run_short({{"/etc"}, {}, "/"}, guard, enough), std::system_error);
  CHECK(resources_now().descriptors == before.descriptors);
}

TEST_CASE(
    "process: a child gets its own environment, directory and group, and no other descriptor") {
  const child_guard guard;
  const auto leak = ::open("/dev/null", O_RDONLY);  // without O_CLOEXEC
  ::setenv("CLAUDE_OPENAI_TEST_LEAK", "1", 1);
  auto what = shell(
      "env; pwd; ls /proc/self/fd | tr '\\n' ' '; echo; grep SigIgn /proc/self/status;"
      "grep SigBlk /proc/self/status");
  what.environment["ONLY"] = "this";
  const auto said = run_short(what, guard, enough);
  ::close(leak);
  ::unsetenv("CLAUDE_OPENAI_TEST_LEAK");
  CHECK(said.output.find("ONLY=this\n") != std::string::npos);
  CHECK(said.output.find("TEST_LEAK") == std::string::npos);
  CHECK(said.output.find("\n/\n") != std::string::npos);
  CHECK_MESSAGE(said.output.find("\n0 1 2 3 \n") != std::string::npos, said.output);  // 3: ls's own
  const auto ignored = said.output.find("SigIgn:\t");
  REQUIRE(ignored != std::string::npos);
  const auto mask = std::stoull(said.output.substr(ignored + 8, 16), nullptr, 16);
  CHECK((mask & 0x7fffffff) == 0);  // glibc's own two are above
  CHECK(said.output.find("SigBlk:\t0000000000000000") != std::string::npos);
  child_process child(shell("sleep 60"), guard);
  CHECK(::getpgid(child.pid()) == child.pid());
}

TEST_CASE("process: the destructor kills a child and its group, and reaps it") {
  const child_guard guard;
  const auto before = resources_now();
  pid_t pid = 0, grandchild = 0;
  {
    child_process child(shell("trap '' TERM; sleep 60 & echo $!; wait; wait"), guard);
    pid = child.pid();
    grandchild = printed_pid(first_line(child));
    REQUIRE(grandchild > 0);
    CHECK_FALSE(child.has_exited());
  }
  CHECK(is_gone(pid));
  CHECK(eventually([&] { return is_dead(grandchild); }));
  CHECK(resources_now().descriptors == before.descriptors);
}

TEST_CASE("process: an exited child keeps its id until it is reaped, and is reaped once") {
  const child_guard guard;
  child_process child(shell("exit 7"), guard);
  const auto pid = child.pid();
  REQUIRE(eventually([&] { return child.has_exited(); }));
  CHECK(process_state(pid) == 'Z');
  CHECK(child.ending().empty());
  CHECK(child.try_reap());
  CHECK(child.try_reap());
  CHECK(child.ending() == "exit code 7");
  CHECK(is_gone(pid));
}

TEST_CASE("process: 5 MB go in and out without a deadlock") {
  const child_guard guard;
  child_process child({{"/bin/cat"}, {}, "/"}, guard);
  const std::string sent(5'000'000, 'm');
  claude_openai::write_buffer outgoing;
  outgoing.add(sent);
  std::string back;
  CHECK(eventually(
      [&] {
        outgoing.flush(child.input.get());
        claude_openai::read_available(child.output.get(), back);
        return back.size() == sent.size();
      },
      20s));
  CHECK(back == sent);
}

TEST_CASE("process: writing to a child that has gone is no more than false") {
  const child_guard guard;
  child_process child(shell("exit 0"), guard);
  REQUIRE(eventually([&] { return child.has_exited(); }));
  claude_openai::write_buffer outgoing;
  outgoing.add(std::string(1'000'000, 'x'));
  CHECK_FALSE(outgoing.flush(child.input.get()));
}

TEST_CASE("process: without a free descriptor nothing starts, and nothing is lost") {
  const child_guard guard;
  rlimit usual{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &usual) == 0);
  const auto before = resources_now();
  int failed = 0;
  for (rlim_t limit = 3; limit < 40;
       ++limit) {  // wherever it stops: in the first pipe, the second …
    rlimit tight = usual;
    tight.rlim_cur = limit;
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &tight) == 0);
    try {
      const child_process child(shell("exit 0"), guard);
    } catch (const std::system_error&) {
      ++failed;
    }
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &usual) == 0);
    CHECK(resources_now().descriptors == before.descriptors);
  }
  CHECK(failed > 5);
  CHECK(failed < 30);
}

namespace {

/// A private directory in a place of the test's own, and a guard that makes sure of it.
struct guarded_directory {
  stand_in place;
  claude_openai::temporary_directory directory{place.folder()};
  child_guard guard{&directory};

  /// What a child that is started now says of the directory; the refusal when none is started.
  std::string start() const {
    try {
      return run_short(shell("stat -c '%a %F' " + directory.path()), guard, enough).output;
    } catch (const std::system_error& refused) {
      return refused.what();
    }
  }
  void remove() const { std::filesystem::remove_all(directory.path()); }
};

}  // namespace

TEST_CASE("process: a private directory that was tidied away is made anew before the next start") {
  const guarded_directory given;
  CHECK(given.start() == "700 directory\n");
  given.remove();
  CHECK(given.start() == "700 directory\n");
  given.remove();
  CHECK(given.start() == "700 directory\n");
  REQUIRE(::chmod(given.directory.path().c_str(), 0777) == 0);
  CHECK(given.start() == "700 directory\n");
}

TEST_CASE("process: nothing is started in what has taken a private directory's name") {
  const guarded_directory given;
  const auto& path = given.directory.path();
  const stand_in other;
  SUBCASE("a directory") { REQUIRE((given.remove(), ::mkdir(path.c_str(), 0700)) == 0); }
  SUBCASE("another user's directory") {
    if (::geteuid() != 0) return;
    REQUIRE((given.remove(), ::mkdir(path.c_str(), 0777)) == 0);
    REQUIRE(::chown(path.c_str(), 12345, 12345) == 0);
  }
  SUBCASE("a link to a directory") {
    given.remove();
    std::filesystem::create_symlink(other.folder(), path);
  }
  SUBCASE("a link to the directory itself") {
    const auto moved = other.folder() + "/moved";
    std::filesystem::rename(path, moved);
    std::filesystem::create_symlink(moved, path);
  }
  SUBCASE("a file") {
    given.remove();
    std::ofstream(path) << "mine";
  }
  const auto said = given.start();
  CHECK_MESSAGE(said.find("something else has its name; restart the proxy") != said.npos, said);
  CHECK(said.find(path) != std::string::npos);
}

TEST_CASE("process: at its end only what was made for the private directory is removed") {
  const stand_in place;
  auto directory = std::make_unique<claude_openai::temporary_directory>(place.folder());
  const auto path = directory->path();
  std::filesystem::remove_all(path);
  std::filesystem::create_directory(path);
  std::ofstream(path + "/file") << "not the proxy's";
  directory.reset();
  CHECK(std::filesystem::exists(path + "/file"));
}

TEST_CASE("process: children die with a proxy that is killed with -9") {
  const stand_in program("ignore_sigterm\nignore_eof\n");
  auto started = claude_openai::make_pipe();
  const auto proxy = ::fork();
  REQUIRE(proxy >= 0);
  if (proxy == 0) {
    const child_guard guard;
    std::vector<std::unique_ptr<child_process>> children;
    for (int i = 0; i < 3; ++i) {
      children.push_back(std::make_unique<child_process>(
          command{{program.path(), "-p"}, {}, program.folder()}, guard));
    }
    claude_openai::write_all(started.write.get(), "3");  // the guard knows all of them
    for (int i = 0; i < 600; ++i) ::poll(nullptr, 0, 100);
    ::_exit(0);
  }
  pollfd ready{started.read.get(), POLLIN, 0};
  CHECK(::poll(&ready, 1, 30'000) == 1);
  CHECK(eventually([&] { return program.live().size() == 3; }));
  ::kill(proxy, SIGKILL);
  ::waitpid(proxy, nullptr, 0);
  CHECK(eventually([&] { return program.live().empty(); }));
}

namespace {

std::set<pid_t> children() {
  std::ifstream file("/proc/self/task/" + std::to_string(::getpid()) + "/children");
  return {std::istream_iterator<pid_t>(file), {}};
}

/// Of memory that no other process shares, in kB.
long private_memory(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/smaps_rollup");
  long sum = 0;
  for (std::string name; file >> name;) {
    long size = 0;
    if (claude_openai::text::starts_with(name, "Private_") && file >> size) sum += size;
  }
  return sum;
}

}  // namespace

TEST_CASE("process: the guard's own process ends with it") {
  const auto before = children();
  {
    const child_guard guard;
    CHECK(children().size() == before.size() + 1);
  }
  CHECK(children() == before);
}

TEST_CASE("process: the guard keeps neither memory nor descriptors of the program that it guards") {
  std::string host(64'000'000, 'x');
  rlimit usual{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &usual) == 0);
  const int high = static_cast<int>(std::min<rlim_t>(usual.rlim_cur - 1, 5'000));
  const claude_openai::unique_fd inherited(::dup2(STDERR_FILENO, high));
  const auto before = children();
  const child_guard guard;
  std::fill(host.begin(), host.end(), 'y');  // a fork would keep what was there before
  pid_t pid = 0;
  for (const auto child : children()) pid = before.count(child) > 0 ? pid : child;
  REQUIRE(pid > 0);
  std::set<std::string> open;
  CHECK(eventually([&] {  // once it is the shell
    open.clear();
    std::error_code gone;
    for (const auto& fd :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", gone)) {
      open.insert(fd.path().filename().string());
    }
    return open == std::set<std::string>{"0", "1", "2"};
  }));
  CHECK(private_memory(pid) > 0);
  CHECK(private_memory(pid) < 4'000);
}

TEST_CASE("process: a private directory goes with a proxy that is killed, whatever its name") {
  const stand_in place;
  const auto parent = place.folder() + "/a b'\n$(c) \\*";
  std::filesystem::create_directory(parent);
  std::ofstream(place.folder() + "/a b'") << "another's";
  const auto proxy = ::fork();
  REQUIRE(proxy >= 0);
  if (proxy == 0) {
    claude_openai::temporary_directory directory(parent);
    const child_guard guard(&directory);
    ::kill(::getpid(), SIGKILL);
  }
  ::waitpid(proxy, nullptr, 0);
  CHECK(eventually([&] { return std::filesystem::is_empty(parent); }));
  CHECK(std::filesystem::exists(place.folder() + "/a b'"));
}
