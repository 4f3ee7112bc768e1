// Processes by the dozen: the cap, the spares, and that every one of them ends.
#include "pool_support.hpp"

#include <sys/stat.h>

using namespace protocol_test;
using claude_openai::api_error;
using claude_openai::error_kind;

namespace {

/// Whether the process was there before somebody asked for it.
bool was_there(const lease& taken, steady::time_point asked) {
  return taken.process().started() < asked;
}

}  // namespace

TEST_CASE("pool: spares are started in the background, and only as many as wanted") {
  const stand_in program;
  const running_pool running(with_spares(program, 2, 8));
  REQUIRE(has_warm(running.processes, 2));
  std::this_thread::sleep_for(400ms);
  CHECK(program.started() == 2);
  CHECK(running.processes.counts().spare == 2);
  CHECK(running.processes.counts().busy == 0);
}

TEST_CASE("pool: a request adopts a warm spare, and another takes its place") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 4));
  REQUIRE(has_warm(running.processes, 1));
  const auto spare = program.live();
  REQUIRE(spare.size() == 1);
  {
    const auto taken = take(running.processes, usual);
    CHECK(taken.taken().origin == process_origin::spare);
    CHECK(pid_of(taken) == spare.front());
    CHECK(running.processes.counts().busy == 1);
    CHECK(has_warm(running.processes, 1));
    CHECK(program.live().size() == 2);
  }
  CHECK(eventually([&] { return process_state(spare.front()) == '\0'; }));
  CHECK(running.processes.counts().busy == 0);
}

TEST_CASE("pool: of two spares the warm one is taken") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 4));
  REQUIRE(has_warm(running.processes, 1));
  const auto warm = program.live().front();
  program.configure("slow_start ms=20000\n");
  running.settings.spares = 2;
  running.processes.keep_spares(running.settings.default_model);
  REQUIRE(eventually([&] { return program.live().size() == 2; }));
  std::this_thread::sleep_for(100ms);  // it runs a moment before the pool can give it away
  const auto taken = take(running.processes, usual);
  CHECK(pid_of(taken) == warm);
}

TEST_CASE("pool: a spare of another profile is never adopted") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 4));
  REQUIRE(has_warm(running.processes, 1));
  const auto asked = steady::now();
  const auto taken = take(running.processes, other);
  CHECK_FALSE(was_there(taken, asked));
  const auto argv = echo_of(taken)["argv"].get<std::vector<std::string>>();
  CHECK(std::count(argv.begin(), argv.end(), "--model=claude-other") == 1);
}

TEST_CASE("pool: a lone spare goes to another profile only when nobody asked for its own") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 4));
  const auto finds_spare = [&] {
    REQUIRE(has_warm(running.processes, 1));
    std::this_thread::sleep_for(300ms);  // for what might come of the request before
    const auto asked = steady::now();
    return was_there(take(running.processes, other), asked);
  };
  running.settings.spare_hold = 1h;
  for (int i = 0; i < 3; ++i) CHECK_FALSE(finds_spare());
  running.settings.spare_hold = 0ms;
  CHECK_FALSE(finds_spare());
  CHECK(eventually(finds_spare));
}

TEST_CASE("pool: at the cap a spare of another profile makes room") {
  const stand_in program;
  running_pool running(with_spares(program, 2, 2));
  REQUIRE(has_warm(running.processes, 2));
  watcher watched(program);
  {
    const auto asked = steady::now();
    const auto taken = take(running.processes, other);
    CHECK_FALSE(was_there(taken, asked));
    CHECK(finish_turn(taken, asking("text")).stopped);
  }
  CHECK(watched.most() <= 2);
}

TEST_CASE("pool: with one process at all, requests for any profile are served one by one") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 1));
  REQUIRE(has_warm(running.processes, 1));
  watcher watched(program);
  for (int i = 0; i < 12; ++i) {
    const auto taken = take(running.processes, i % 3 == 0 ? other : usual);
    CHECK(finish_turn(taken, asking("text n=1")).stopped);
    if (i % 4 == 3) std::this_thread::sleep_for(250ms);  // a spare may come back
  }
  CHECK(watched.most() == 1);
}

TEST_CASE("pool: when all processes are busy, the next request is told so and when to come again") {
  const stand_in program;
  auto settings = with_spares(program, 0, 2);
  settings.queue_timeout = 300ms;
  running_pool running(settings);
  const auto first = take(running.processes, usual);
  auto second = std::make_unique<lease>(take(running.processes, usual));
  const auto start = steady::now();
  try {
    const auto third = take(running.processes, usual);
    FAIL("three leases of two processes");
  } catch (const api_error& busy) {
    CHECK(busy.kind == error_kind::rate_limited);
    CHECK(busy.message.find("--max-processes") != std::string::npos);
    CHECK(busy.retry_after);
  }
  CHECK(elapsed_since(start) < 1s * patience);
  second.reset();
  CHECK_NOTHROW(take(running.processes, usual));  // waits for the one that is ending
}

TEST_CASE("pool: a full queue refuses the next request at once") {
  const stand_in program;
  auto settings = with_spares(program, 0, 1);
  settings.max_queue = 2;
  running_pool running(settings);
  const auto first = take(running.processes, usual);
  pool::ticket second(running.processes, {usual, "a", {}});
  auto third = std::make_unique<pool::ticket>(running.processes,
                                              claude_openai::process_demand{usual, "b", {}});
  CHECK(running.processes.counts().queued == 2);
  try {
    pool::ticket fourth(running.processes, {usual, "c", {}});
    FAIL("three wait in a queue of two");
  } catch (const api_error& full) {
    CHECK(full.kind == error_kind::rate_limited);
    CHECK(full.message.find("queue is full") != std::string::npos);
  }
  third.reset();  // who leaves the queue makes room in it
  CHECK(running.processes.counts().queued == 1);
  CHECK_NOTHROW(pool::ticket(running.processes, {usual, "c", {}}));
  CHECK_FALSE(second.try_take());
}

TEST_CASE("pool: the queue serves clients in turn, and each client's requests in order") {
  const stand_in program;
  running_pool running(with_spares(program, 0, 1));
  auto held = std::make_unique<lease>(take(running.processes, usual));
  std::vector<std::pair<std::string, std::unique_ptr<pool::ticket>>> waiting;
  for (const auto* name : {"a1", "a2", "a3", "b1", "c1", "b2"}) {
    waiting.emplace_back(name, std::make_unique<pool::ticket>(
                                   running.processes,
                                   claude_openai::process_demand{usual, std::string(name, 1), {}}));
  }
  std::string order;
  held.reset();
  const auto deadline = steady::now() + 30s;
  while (!waiting.empty() && steady::now() < deadline) {
    for (auto place = waiting.begin(); place != waiting.end(); ++place) {
      const auto taken = place->second->try_take();
      if (!taken) continue;
      order += place->first + " ";
      waiting.erase(place);
      break;
    }
    std::this_thread::sleep_for(1ms);
  }
  CHECK(order == "a1 b1 c1 a2 b2 a3 ");
}

TEST_CASE(
    "pool: of several client keys none holds all processes, nor blocks another in the queue") {
  const stand_in program;
  auto settings = with_spares(program, 0, 4);
  settings.max_queue = 4;
  settings.api_keys = {"key-a", "key-b"};
  running_pool running(settings);
  std::vector<lease> held;
  for (int i = 0; i < 3; ++i) held.push_back(take(running.processes, usual, "a"));
  std::vector<std::unique_ptr<pool::ticket>> waiting;
  const auto wait = [&](const std::string& client) {
    waiting.push_back(std::make_unique<pool::ticket>(
        running.processes, claude_openai::process_demand{usual, client, {}}));
  };
  for (int i = 0; i < 3; ++i) wait("a");
  CHECK_FALSE(waiting.front()->try_take());
  try {
    wait("a");
    FAIL("one key holds all places in the queue");
  } catch (const api_error& full) {
    CHECK(full.code == "processes_busy");
    CHECK(full.message.find("the 3 of 4") != std::string::npos);
  }
  // The fourth process is another's at once, though requests wait that came before; the queue too.
  auto other_key = std::make_unique<lease>(take(running.processes, usual, "b"));
  wait("b");
  CHECK_FALSE(waiting.back()->try_take());
  other_key.reset();
  CHECK(eventually([&] { return waiting.back()->try_take().has_value(); }));
  CHECK_FALSE(waiting.front()->try_take());
  held.pop_back();
  CHECK(eventually([&] { return waiting.front()->try_take().has_value(); }));
}

TEST_CASE("pool: one client key alone may hold all processes, also after a reload") {
  const stand_in program;
  running_pool running(with_spares(program, 0, 2));
  running.processes.share_between(2);
  const auto first = take(running.processes, usual, "a");
  pool::ticket second(running.processes, {usual, "a", {}});
  CHECK_FALSE(second.try_take());
  running.processes.share_between(1);
  CHECK(eventually([&] { return second.try_take().has_value(); }));
}

TEST_CASE("pool: with one process at all every client key may have it") {
  const stand_in program;
  running_pool running(with_spares(program, 0, 1));
  running.processes.share_between(5);
  CHECK(finish_turn(take(running.processes, usual, "a"), asking("text")).stopped);
  CHECK(finish_turn(take(running.processes, usual, "b"), asking("text")).stopped);
}

TEST_CASE("pool: a conversation that waits gets its own process before a new one can take it") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 1));
  auto held = std::make_unique<lease>(take(running.processes, usual, "b"));
  auto chat = asking("text n=1");
  REQUIRE(finish_turn(*held, chat).stopped);
  chat.messages.insert(chat.messages.end(), {assistant_says("w0"), user_says("and then?")});
  const auto trace = claude_openai::make_trace(chat);
  pool::ticket fresh(running.processes, {usual, "a", {}});
  pool::ticket next(running.processes, {usual, "b", &trace});
  held.reset();
  std::optional<lease> taken;
  CHECK(eventually([&] {
    if (auto got = next.try_take()) taken.emplace(std::move(*got));
    return taken.has_value();
  }));
  REQUIRE(taken);
  CHECK(taken->taken().origin == process_origin::continued);
  CHECK_FALSE(fresh.try_take());
  taken.reset();  // it makes room: the new one gets a process of its own
  CHECK(eventually([&] { return fresh.try_take().has_value(); }));
}

TEST_CASE("pool: requests that wait while all is busy cost no processor time") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 2));
  const auto first = take(running.processes, usual);
  const auto second = take(running.processes, usual);
  const pool::ticket waiting(running.processes, {usual, "a", {}});
  std::this_thread::sleep_for(50ms);
  const auto before = processor_time();
  std::this_thread::sleep_for(500ms);
  CHECK((processor_time() - before).count() < 100);
}

TEST_CASE("pool: spares and idle processes wake nobody, however long they are there") {
  const stand_in program;
  auto settings = with_spares(program, 2, 4);
  settings.idle_timeout = 300ms;
  running_pool running(settings);
  REQUIRE(has_warm(running.processes, 2));
  std::this_thread::sleep_for(500ms);
  const auto switches = [] {
    rusage used{};
    ::getrusage(RUSAGE_SELF, &used);
    return used.ru_nvcsw;
  };
  const auto before = switches();
  std::this_thread::sleep_for(500ms);
  CHECK(switches() - before < 10);
}

TEST_CASE("pool: the cap holds under a stampede, counted from outside") {
  const stand_in program;
  constexpr int cap = 4;
  running_pool running(with_spares(program, 2, cap));
  watcher watched(program);
  std::atomic<int> served{0}, refused{0}, most_counted{0};
  std::vector<std::thread> crowd;
  for (int i = 0; i < 200; ++i) {
    crowd.emplace_back([&, i] {
      try {
        const auto taken = take(running.processes, i % 5 == 0 ? other : usual);
        const auto counts = running.processes.counts();
        const auto sum = counts.busy + counts.spare + counts.stopping;
        for (int seen = most_counted;
             sum > seen && !most_counted.compare_exchange_weak(seen, sum);) {
        }
        std::this_thread::sleep_for(milliseconds(i % 7));
        ++served;
      } catch (const api_error&) {
        ++refused;
      }
    });
  }
  for (auto& each : crowd) each.join();
  CHECK(served + refused == 200);
  CHECK(served >= cap);
  CHECK(most_counted <= cap);
  CHECK(watched.most() <= cap);
  CHECK(watched.rounds() > 3);
  MESSAGE("served " << served.load() << ", refused " << refused.load());
}

TEST_CASE("pool: a claude that ignores SIGTERM is killed after the grace period") {
  const stand_in program("ignore_sigterm\nignore_eof\n");
  auto settings = options_for(program);
  settings.stop_grace = 400ms;
  running_pool running(settings);
  pid_t pid = 0;
  {
    const auto taken = take(running.processes, usual);
    pid = pid_of(taken);
  }
  const auto given_back = steady::now();
  std::this_thread::sleep_for(200ms);
  CHECK(process_state(pid) != '\0');  // the grace is real …
  CHECK(running.processes.counts().stopping == 1);
  CHECK(eventually([&] { return process_state(pid) == '\0'; }));
  CHECK(elapsed_since(given_back) < 1500ms * patience);  // … and short
  CHECK(eventually([&] { return running.processes.counts().stopping == 0; }));
}

TEST_CASE("pool: a claude that hears SIGTERM is gone long before the grace is over") {
  const stand_in program;
  auto settings = options_for(program);
  settings.stop_grace = 20s;
  running_pool running(settings);
  pid_t pid = 0;
  {
    const auto taken = take(running.processes, usual);
    pid = pid_of(taken);
  }
  CHECK(eventually([&] { return process_state(pid) == '\0'; }));
}

TEST_CASE("pool: a grandchild that holds the pipes is killed with its parent, and blocks nothing") {
  const stand_in program;
  running_pool running(options_for(program));
  const auto before = resources_now();
  {
    const auto taken = take(running.processes, usual);
    auto request = asking("text n=1");
    request.messages.back().parts.push_back(claude_openai::text_part{told("grandchild")});
    CHECK(finish_turn(taken, request).stopped);
    CHECK(members_of_group(program.sessions().front()) == 2);
  }
  CHECK(program.gone());
  CHECK(eventually([&] { return members_of_group(program.sessions().front()) == 0; }));
  CHECK(eventually([&] { return resources_now().descriptors == before.descriptors; }));
}

TEST_CASE("pool: a claude that dies leaving a grandchild with its pipes is an error at once") {
  const stand_in program;
  running_pool running(options_for(program));
  const auto start = steady::now();
  {
    const auto taken = take(running.processes, usual);
    auto request = asking("crash after=1");
    request.messages.back().parts.push_back(claude_openai::text_part{told("grandchild")});
    check_failed(finish_turn(taken, request), error_kind::bad_gateway, "ended");
  }
  CHECK(elapsed_since(start) < 3s * patience);
  CHECK(eventually([&] { return members_of_group(program.sessions().front()) == 0; }));
}

TEST_CASE("pool: a spare that was killed is replaced") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 4));
  REQUIRE(has_warm(running.processes, 1));
  const auto victim = program.live().front();
  ::kill(victim, SIGKILL);
  CHECK(eventually([&] {
    const auto live = program.live();
    return process_state(victim) == '\0' && live.size() == 1 && live.front() != victim;
  }));
}

TEST_CASE("pool: a claude that dies at its start is not started again without end") {
  const stand_in program("crash_at_start\n");
  const running_pool running(with_spares(program, 2, 8));
  std::this_thread::sleep_for(1500ms);
  CHECK(program.started() >= 1);
  CHECK(program.started() <= 8);
}

TEST_CASE("pool: spares come back when claude is well again") {
  const stand_in program("crash_at_start\n");
  const running_pool running(with_spares(program, 1, 8));
  CHECK(eventually([&] { return program.started() >= 1; }));
  program.configure("");
  CHECK(eventually([&] { return running.processes.counts().warm == 1; }));
}

TEST_CASE("pool: a spare that floods stderr or stdout does not block the others") {
  const stand_in program("stderr_flood bytes=3000000\n");
  running_pool running(with_spares(program, 2, 8));
  CHECK(has_warm(running.processes, 2));
}

TEST_CASE("pool: when claude is missing or no program, the request is told what to do") {
  const stand_in program;
  for (const auto& path : {std::string("/no/such/claude"), program.folder()}) {
    auto settings = options_for(program);
    settings.claude_path = path;
    settings.spares = 1;
    const auto before = resources_now();
    running_pool running(settings);
    for (int i = 0; i < 20; ++i) {
      try {
        const auto taken = take(running.processes, usual);
        FAIL("started " << path);
      } catch (const api_error& missing) {
        CAPTURE(missing.message);
        REQUIRE(missing.kind == error_kind::unavailable);
        REQUIRE(missing.message.find("npm install -g @anthropic-ai/claude-code") !=
                std::string::npos);
      }
    }
    CHECK(running.processes.counts().busy == 0);
    CHECK(program.started() == 0);
    // The pool's own: its guard's pipe and its wake signal.
    CHECK(eventually([&] { return resources_now().descriptors <= before.descriptors + 3; }));
  }
}

TEST_CASE("pool: a claude that is no program in any sense ends as one that cannot start") {
  const stand_in program;
  const auto path = program.folder() + "/no-program";
  std::ofstream(path) << "no-such-command-of-the-shell\n";
  ::chmod(path.c_str(), 0755);
  auto settings = options_for(program);
  settings.claude_path = path;
  running_pool running(settings);
  try {
    take(running.processes, usual);
    FAIL("started " << path);
  } catch (const api_error& refused) {
    const bool ended = refused.message.find("exit code") != std::string::npos;
    CHECK(refused.kind == (ended ? error_kind::bad_gateway : error_kind::unavailable));
  }
}

TEST_CASE("pool: its end leaves no process, descriptor, thread or zombie") {
  const stand_in program("ignore_sigterm\nignore_eof\n");
  const auto before = resources_now();
  {
    running_pool running(with_spares(program, 3, 8));
    REQUIRE(has_warm(running.processes, 3));
    const auto taken = take(running.processes, usual);
    CHECK(finish_turn(taken, asking("text")).stopped);
  }
  CHECK(program.live().empty());  // at once: the destructor has waited for them
  CHECK(program.zombies() == 0);
  const auto after = resources_now();
  CHECK(after.descriptors == before.descriptors);
  CHECK(after.threads == before.threads);
}

TEST_CASE("pool: the default cap follows the memory, within bounds") {
  constexpr std::uint64_t mib = 1024 * 1024;
  CHECK(claude_openai::default_max_processes(0) == 2);
  CHECK(claude_openai::default_max_processes(250 * mib) == 2);
  CHECK(claude_openai::default_max_processes(2500 * mib) == 10);
  CHECK(claude_openai::default_max_processes(1'000'000 * mib) == 32);
}
