// Processes by the dozen: the cap, the spares, and that every one of them ends.
#include "proxy_support.hpp"

#include <sys/stat.h>

using namespace protocol_test;
using claude_openai::api_error;
using claude_openai::child_guard;
using claude_openai::error_kind;
using claude_openai::launch_profile;
using claude_openai::lease;
using claude_openai::options;
using claude_openai::pool;

namespace {

const launch_profile usual{"claude-test"};
const launch_profile other{"claude-other"};

/// A pool whose janitor runs.
struct running_pool {
  explicit running_pool(options chosen)
      : settings(std::move(chosen)), processes(settings, std::make_shared<child_guard>()) {
    processes.start();
    if (settings.spares > 0) processes.keep_spares();
  }
  options settings;
  pool processes;
};

options with_spares(const stand_in& program, int spares, int maximum) {
  auto settings = options_for(program);
  settings.spares = spares;
  settings.max_processes = maximum;
  return settings;
}

bool has_warm(const pool& processes, int count) {
  return eventually([&] { return processes.counts().warm == count; });
}

/// One whole turn on that process.
outcome finish_turn(claude_openai::worker& process, const claude_openai::turn_request& request) {
  outcome got;
  process.begin(request, 0);
  const auto deadline = steady::now() + 10s * slowness;
  while (!got.ended() && steady::now() < deadline) {
    std::vector<pollfd> entries;
    process.add_poll_entries(entries);
    ::poll(entries.data(), static_cast<nfds_t>(entries.size()), 50);
    process.pump();
    while (const auto what = process.pop()) got.add(*what);
  }
  return got;
}

/// A process, waited for as a request does.
lease wait_for(pool& processes, claude_openai::process_demand demand) {
  pool::ticket place(processes, std::move(demand));
  const auto deadline = steady::now() + 20s * slowness;
  while (steady::now() < deadline) {
    if (auto taken = place.try_take()) return std::move(*taken);
    pollfd readable{place.fd(), POLLIN, 0};
    ::poll(&readable, 1, 20);
  }
  throw std::runtime_error("no process in time");
}

lease take(pool& processes, const launch_profile& profile, const std::string& client = "") {
  return wait_for(processes, {profile, client, {}});
}

pid_t pid_of(claude_openai::worker& process) {
  const auto got = finish_turn(process, asking("echo"));
  REQUIRE(got.stopped);
  return json::parse(got.text)["pid"].get<pid_t>();
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
    CHECK(taken.was_waiting());
    CHECK(pid_of(taken.worker()) == spare.front());
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
  running.processes.keep_spares();
  REQUIRE(eventually([&] { return program.live().size() == 2; }));
  std::this_thread::sleep_for(100ms);  // it runs a moment before the pool can give it away
  const auto taken = take(running.processes, usual);
  CHECK(pid_of(taken.worker()) == warm);
}

TEST_CASE("pool: a spare of another profile is never adopted") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 4));
  REQUIRE(has_warm(running.processes, 1));
  const auto taken = take(running.processes, other);
  CHECK_FALSE(taken.was_waiting());
  const auto got = finish_turn(taken.worker(), asking("echo"));
  REQUIRE(got.stopped);
  const auto argv = json::parse(got.text)["argv"].get<std::vector<std::string>>();
  CHECK(std::count(argv.begin(), argv.end(), "--model=claude-other") == 1);
}

TEST_CASE("pool: a lone spare goes to another profile only when nobody asked for its own") {
  const stand_in program;
  running_pool running(with_spares(program, 1, 4));
  const auto finds_spare = [&] {
    REQUIRE(has_warm(running.processes, 1));
    std::this_thread::sleep_for(300ms);  // for what might come of the request before
    return take(running.processes, other).was_waiting();
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
    const auto taken = take(running.processes, other);
    CHECK_FALSE(taken.was_waiting());
    CHECK(finish_turn(taken.worker(), asking("text")).stopped);
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
    CHECK(finish_turn(taken.worker(), asking("text n=1")).stopped);
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
  CHECK(elapsed_since(start) < 1s * slowness);
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
  const auto deadline = steady::now() + 20s * slowness;
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
  CHECK(second.try_take().has_value());
}

TEST_CASE("pool: with one process at all every client key may have it") {
  const stand_in program;
  running_pool running(with_spares(program, 0, 1));
  running.processes.share_between(5);
  CHECK(take(running.processes, usual, "a").known_replies() == 0);
  CHECK(take(running.processes, usual, "b").known_replies() == 0);
}

TEST_CASE("pool: a conversation that waits gets its own process before a new one can take it") {
  const stand_in program;
  auto settings = with_spares(program, 0, 1);
  settings.idle_timeout = 60s;
  running_pool running(settings);
  auto held = std::make_unique<lease>(take(running.processes, usual));
  REQUIRE(finish_turn(held->worker(), asking("text")).stopped);
  held->keep("told");
  pool::ticket fresh(running.processes, {usual, "a", {}});
  pool::ticket next(running.processes, {usual, "b", {"told and more", {4}}});
  held.reset();
  std::optional<lease> taken;
  CHECK(eventually([&] {
    if (auto got = next.try_take()) taken.emplace(std::move(*got));
    return taken.has_value();
  }));
  REQUIRE(taken);
  CHECK(taken->known_replies() == 1);
  CHECK_FALSE(fresh.try_take());
  taken.reset();  // not kept: the new one gets a process of its own
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
    pid = pid_of(taken.worker());
  }
  const auto given_back = steady::now();
  std::this_thread::sleep_for(200ms);
  CHECK(process_state(pid) != '\0');  // the grace is real …
  CHECK(running.processes.counts().stopping == 1);
  CHECK(eventually([&] { return process_state(pid) == '\0'; }));
  CHECK(elapsed_since(given_back) < 1500ms * slowness);  // … and short
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
    pid = pid_of(taken.worker());
  }
  CHECK(eventually([&] { return process_state(pid) == '\0'; }, 2s));
}

TEST_CASE("pool: a grandchild that holds the pipes is killed with its parent, and blocks nothing") {
  const stand_in program;
  running_pool running(options_for(program));
  const auto before = resources_now();
  {
    const auto taken = take(running.processes, usual);
    auto request = asking("text n=1");
    request.messages.back().parts.push_back(claude_openai::text_part{told("grandchild")});
    CHECK(finish_turn(taken.worker(), request).stopped);
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
    check_failed(finish_turn(taken.worker(), request), error_kind::bad_gateway, "ended");
  }
  CHECK(elapsed_since(start) < 3s * slowness);
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
  CHECK(eventually([&] { return running.processes.counts().warm == 1; }, 15s));
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
    const auto taken = take(running.processes, usual);
    check_failed(finish_turn(taken.worker(), asking("text")), error_kind::bad_gateway, "exit code");
  } catch (const api_error& refused) {
    CHECK(refused.kind == error_kind::unavailable);
  }
}

TEST_CASE("pool: its end leaves no process, descriptor, thread or zombie") {
  const stand_in program("ignore_sigterm\nignore_eof\n");
  const auto before = resources_now();
  {
    running_pool running(with_spares(program, 3, 8));
    REQUIRE(has_warm(running.processes, 3));
    const auto taken = take(running.processes, usual);
    CHECK(finish_turn(taken.worker(), asking("text")).stopped);
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

namespace {

claude_openai::turn_request opened_by(const std::string& system, const std::string& wish) {
  auto request = asking(wish);
  request.system = system;
  return request;
}

/// A process for a fresh conversation that is opened like this.
lease take_for(pool& processes, const claude_openai::turn_request& request) {
  return wait_for(processes, {usual, "", {}, false, &request});
}

/// How often the process was initialized, and with which system prompt.
std::pair<int, std::string> initialized(claude_openai::worker& process, const std::string& system) {
  const auto got = finish_turn(process, opened_by(system, "echo"));
  REQUIRE(got.stopped);
  const auto told = json::parse(got.text)["told"];
  return {told["initialized"].get<int>(), told["initialize"]["systemPrompt"].dump()};
}

}  // namespace

TEST_CASE("pool: who opens conversations alike finds a spare that is opened already") {
  const stand_in program;
  running_pool running(with_spares(program, 2, 8));
  REQUIRE(has_warm(running.processes, 2));
  for (int i = 0; i < 2; ++i) {
    const auto taken = take_for(running.processes, opened_by("usual prompt", "echo"));
    CHECK(taken.worker().opening().empty());
    CHECK(initialized(taken.worker(), "usual prompt").first == 1);
  }
  REQUIRE(eventually([&] { return running.processes.counts().opened == 1; }));
  REQUIRE(has_warm(running.processes, 2));
  {
    // Somebody else's prompt never goes to it, nor does a request that tells none.
    const auto stranger = take_for(running.processes, opened_by("another prompt", "echo"));
    CHECK(stranger.worker().opening().empty());
    CHECK(initialized(stranger.worker(), "another prompt").second.find("another") !=
          std::string::npos);
    CHECK(running.processes.counts().opened == 1);
  }
  const auto taken = take_for(running.processes, opened_by("usual prompt", "echo"));
  CHECK(!taken.worker().opening().empty());
  const auto [times, prompt] = initialized(taken.worker(), "usual prompt");
  CHECK(times == 1);
  CHECK(prompt.find("usual prompt") != std::string::npos);
}

TEST_CASE("pool: what is usually wished is told ahead, and what is wished otherwise after it") {
  const stand_in program;
  running_pool running(with_spares(program, 2, 8));
  const auto told_by = [&](double temperature) {
    auto request = opened_by("usual prompt", "echo");
    request.sampling.temperature = temperature;
    REQUIRE(has_warm(running.processes, 2));
    const auto taken = take_for(running.processes, request);
    const auto echo = json::parse(finish_turn(taken.worker(), request).text);
    return std::pair(echo["told"]["settings_told"].get<int>(), echo["settings"]["env"].dump());
  };
  told_by(0.25);
  told_by(0.25);
  for (const double temperature : {0.25, 0.75}) {
    REQUIRE(eventually([&] { return running.processes.counts().opened == 1; }));
    const auto [times, settings] = told_by(temperature);
    CHECK(times == (temperature == 0.25 ? 2 : 3));  // the probe is one
    CHECK(settings.find(json(temperature).dump()) != std::string::npos);
  }
}

TEST_CASE("pool: a prompt that came once opens no spare, and a new usual one takes its place") {
  const stand_in program;
  running_pool running(with_spares(program, 2, 8));
  REQUIRE(has_warm(running.processes, 2));
  for (const char* prompt : {"a", "b", "a", "b"}) {
    take_for(running.processes, opened_by(prompt, "echo"));
  }
  REQUIRE(has_warm(running.processes, 2));
  std::this_thread::sleep_for(300ms);
  CHECK(running.processes.counts().opened == 0);
  for (const std::string prompt : {"first", "second"}) {
    for (int i = 0; i < 3; ++i) {
      take_for(running.processes, opened_by(prompt, "echo"));
      REQUIRE(has_warm(running.processes, 2));
    }
    REQUIRE(eventually([&] { return running.processes.counts().opened == 1; }));
    const auto taken = take_for(running.processes, opened_by(prompt, "echo"));
    CHECK(!taken.worker().opening().empty());
    CHECK(initialized(taken.worker(), prompt).second.find(prompt) != std::string::npos);
  }
}

TEST_CASE("pool: where a rehearsal fails, spares are opened without one") {
  const stand_in program("refuses_rewind\n");
  running_pool running(with_spares(program, 2, 8));
  const auto take_usual = [&] {
    REQUIRE(has_warm(running.processes, 2));
    return take_for(running.processes, opened_by("usual prompt", "echo"));
  };
  for (int i = 0; i < 2; ++i) take_usual();
  // The first one that is opened is lost, and its opening forgotten.
  REQUIRE(eventually([&] { return running.processes.counts().started >= 5; }));
  for (int i = 0; i < 2; ++i) take_usual();
  REQUIRE(eventually([&] { return running.processes.counts().opened == 1; }));
  const auto taken = take_usual();
  CHECK(!taken.worker().opening().empty());
  const auto got = finish_turn(taken.worker(), opened_by("usual prompt", "echo"));
  REQUIRE(got.stopped);
  const auto told = json::parse(got.text)["told"];
  CHECK(told["initialized"] == 1);
  CHECK(!told.contains("rewinds_asked"));
}

TEST_CASE("pool: a spare that is opened with tools serves them to its first request") {
  const stand_in program;
  running_pool running(with_spares(program, 2, 8));
  auto request = asking("tool names=look");
  request.tools.push_back({"look", "looks", json::object({{"type", "object"}})});
  for (int i = 0; i < 2; ++i) take_for(running.processes, request);
  REQUIRE(eventually([&] { return running.processes.counts().opened == 1; }));
  REQUIRE(has_warm(running.processes, 2));
  const auto taken = take_for(running.processes, request);
  REQUIRE(!taken.worker().opening().empty());
  const auto got = finish_turn(taken.worker(), request);
  REQUIRE(got.stopped);
  CHECK(got.stopped->reason == claude_openai::stop_reason::tool_use);
}

TEST_CASE("pool: a spare that is opened with tools is for no other tools or effort") {
  const stand_in program;
  running_pool running(with_spares(program, 2, 8));
  auto request = asking("text");
  request.tools.push_back({"look", "looks", json::object({{"type", "object"}})});
  for (int i = 0; i < 2; ++i) take_for(running.processes, request);
  REQUIRE(eventually([&] { return running.processes.counts().opened == 1; }));
  auto another = request;
  another.tools.front().description = "looks elsewhere";
  CHECK(take_for(running.processes, another).worker().opening().empty());
  auto harder = request;  // an effort stays with the process that was told it
  harder.effort = claude_openai::reasoning_effort::high;
  CHECK(take_for(running.processes, harder).worker().opening().empty());
  CHECK(take_for(running.processes, asking("text")).worker().opening().empty());
  CHECK(running.processes.counts().opened == 1);
}
