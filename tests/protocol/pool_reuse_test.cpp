// Which process serves a request: who may have whose, what waits for what, and what an older
// `claude` takes back.
#include "pool_support.hpp"

using namespace protocol_test;
using claude_openai::api_error;
using claude_openai::error_kind;

namespace {

/// A question, and nothing before it.
turn_request question(const std::string& words, const std::string& client = "") {
  auto request = asking("echo");
  request.client = client;
  request.messages = {user_says(told("echo") + " " + words)};
  return request;
}

/// The process that answered, and how it was brought to the request.
struct served {
  pid_t pid;
  way taken;
  json history;
};

served serve(pool& processes, const turn_request& request) {
  const auto taken = take_for(processes, request);
  const auto echo = echo_of(taken, request);
  return {echo["pid"].get<pid_t>(), taken.taken(), echo["history"]};
}

/// One answer, and all that was said as a client sends it back.
served converse(pool& processes, turn_request& chat) {
  const auto taken = take_for(processes, chat);
  const auto got = finish_turn(taken, chat);
  REQUIRE_MESSAGE(got.stopped, (got.error ? got.error->message : "no end"));
  chat.messages.push_back(assistant_says(got.text));
  const auto echo = json::parse(got.text);
  return {echo["pid"].get<pid_t>(), taken.taken(), echo["history"]};
}

}  // namespace

TEST_CASE("pool: one-off questions of one client are served by one process, which holds the last") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 4));
  const auto first = serve(running.processes, question("secret-1"));
  for (const std::string words : {"secret-2", "secret-3", "secret-4"}) {
    const auto next = serve(running.processes, question(words));
    CHECK(next.pid == first.pid);
    CHECK(next.taken.origin == process_origin::rewound);
    CHECK(next.taken.rewound == 1);
    REQUIRE(next.history.size() == 1);
    CHECK(next.history.dump().find(words) != std::string::npos);
  }
  CHECK(program.started() == 1);
}

TEST_CASE("pool: a changed conversation is told what is missing, by the process that holds most") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 4));
  auto chat = question("first");
  const auto pid = converse(running.processes, chat).pid;
  for (const auto* words : {"second", "third"}) {
    chat.messages.push_back(user_says(told("echo") + words));
    CHECK(converse(running.processes, chat).taken.origin == process_origin::continued);
  }
  auto branch = chat;
  branch.messages.resize(3);  // "second" is asked anew
  const auto again = converse(running.processes, branch);
  CHECK(again.pid == pid);
  CHECK(again.taken.rewound == 2);
  CHECK(again.taken.replayed == 0);
  CHECK(again.history.size() == 3);
  chat.messages.push_back(user_says(told("echo") + "fourth"));
  const auto back = converse(running.processes, chat);
  CHECK(back.pid == pid);
  CHECK(back.taken.rewound == 1);
  CHECK(back.taken.replayed == 4);
  REQUIRE(back.history.size() == 7);
  CHECK(back.history[4].dump().find("third") != std::string::npos);
}

TEST_CASE("pool: a process never goes to another client, profile or initialization") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 8));
  auto first = question("secret-1", "a");
  const auto held = serve(running.processes, first);
  auto request = question("secret-2", "a");
  SUBCASE("another client key") { request.client = "b"; }
  SUBCASE("no client key") { request.client.clear(); }
  SUBCASE("another model") { request.model = "claude-other"; }
  SUBCASE("another system prompt") { request.system = "Be another."; }
  SUBCASE("tools") { request.tools.push_back({"look", "looks", json::object()}); }
  SUBCASE("another effort") { request.effort = claude_openai::reasoning_effort::high; }
  SUBCASE("an agent") { request.agent.emplace(); }
  const auto got = serve(running.processes, request);
  CHECK(got.pid != held.pid);
  CHECK(got.history.dump().find("secret-1") == std::string::npos);
  CHECK(process_state(held.pid) != '\0');
  CHECK(serve(running.processes, question("secret-3", "a")).pid == held.pid);
}

TEST_CASE("pool: an agent's process goes on with its conversation, and serves no other") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 8));
  auto chat = question("first");
  chat.agent.emplace();
  const auto held = converse(running.processes, chat);
  auto another = question("another");
  another.agent.emplace();
  CHECK(serve(running.processes, another).pid != held.pid);
  auto again = chat;
  again.messages.resize(1);
  CHECK(serve(running.processes, again).pid != held.pid);
  chat.messages.push_back(user_says(told("echo")));
  CHECK(converse(running.processes, chat).pid == held.pid);
}

TEST_CASE("pool: without process reuse a process serves one conversation") {
  const stand_in program;
  auto settings = that_keeps(program, 0, 8);
  settings.reuse_processes = false;
  running_pool running(settings);
  auto chat = question("first");
  const auto held = converse(running.processes, chat);
  auto again = chat;
  again.messages.resize(1);
  CHECK(serve(running.processes, question("another")).pid != held.pid);
  CHECK(serve(running.processes, again).pid != held.pid);
  chat.messages.push_back(user_says(told("echo")));
  CHECK(converse(running.processes, chat).taken.origin == process_origin::continued);
  CHECK(program.started() == 3);
}

TEST_CASE("pool: without process reuse an answer that nobody wants any more ends its process") {
  const stand_in program;
  auto settings = that_keeps(program, 0, 8);
  settings.reuse_processes = false;
  running_pool running(settings);
  const auto request = asking("hang");
  const auto trace = claude_openai::make_trace(request);
  {
    const auto taken = take_for(running.processes, request);
    taken.process().begin(request, trace, 0);
  }
  CHECK(program.gone());
}

TEST_CASE("pool: eight chats of one client, in turn, are served by four processes") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 4));
  watcher watched(program);
  std::vector<turn_request> chats;
  for (int id = 0; id < 8; ++id) chats.push_back(question("secret-" + std::to_string(100 + id)));
  for (std::size_t round = 0; round < 4; ++round) {
    for (int id = 0; id < 8; ++id) {
      auto& chat = chats[static_cast<std::size_t>(id)];
      if (round > 0)
        chat.messages.push_back(user_says(told("who")));
      else
        chat.messages = {user_says(told("who") + "secret-" + std::to_string(100 + id))};
      const auto taken = take_for(running.processes, chat);
      const auto got = finish_turn(taken, chat);
      REQUIRE(got.stopped);
      const auto known = json::parse(got.text);
      CHECK(known["messages"] == 2 * round + 1);
      CHECK(known["secrets"] == json::array({"secret-" + std::to_string(100 + id)}));
      chat.messages.push_back(assistant_says(got.text));
    }
  }
  CHECK(watched.most() <= 4);
  CHECK(program.started() <= 4);
}

// ---- what waits for what ------------------------------------------------------------------------

namespace {

/// A request that waits for a process, and has a turn on it in a thread of its own.
class waiting_request {
 public:
  waiting_request(pool& processes, turn_request request)
      : request_(std::move(request)), thread_([this, &processes] { run(processes); }) {}
  waiting_request(const waiting_request&) = delete;
  waiting_request& operator=(const waiting_request&) = delete;
  ~waiting_request() { join(); }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

  outcome got;  ///< this and the next: to be read when the thread has ended
  std::optional<way> taken;
  steady::time_point ended;
  std::atomic<bool> is_served{false};

 private:
  void run(pool& processes) {
    try {
      const auto mine = take_for(processes, request_);
      taken = mine.taken();
      is_served = true;
      got = finish_turn(mine, request_);
    } catch (const api_error& failure) {
      got.error = failure;
    }
    ended = steady::now();
  }

  turn_request request_;
  std::thread thread_;
};

int starting_now(const pool& processes) {
  const auto counts = processes.counts();
  return counts.spare - counts.warm;
}

}  // namespace

TEST_CASE("pool: no more processes start at once than there are processors") {
  const stand_in program("slow_start ms=100\n");
  const auto processors = std::max(1U, std::thread::hardware_concurrency());
  constexpr int requests = 12;
  auto settings = with_spares(program, 0, requests);
  running_pool running(settings);
  std::vector<std::unique_ptr<waiting_request>> crowd;
  for (int i = 0; i < requests; ++i) {
    crowd.push_back(std::make_unique<waiting_request>(running.processes, asking("text")));
  }
  int most = 0;
  CHECK(eventually(
      [&] {
        most = std::max(most, starting_now(running.processes));
        return running.processes.counts().started == requests &&
               running.processes.counts().queued == 0;
      },
      20s));
  for (auto& each : crowd) each->join();
  for (const auto& each : crowd) CHECK(each->got.stopped);
  CHECK(most >= 1);
  CHECK(most <= static_cast<int>(processors));
}

TEST_CASE("pool: a burst is served by few processes, which take what comes next") {
  const stand_in program("slow_start ms=300\n");
  running_pool running(that_keeps(program, 0, 16));
  std::vector<std::unique_ptr<waiting_request>> crowd;
  for (int i = 0; i < 16; ++i) {
    crowd.push_back(
        std::make_unique<waiting_request>(running.processes, question(std::to_string(i))));
  }
  for (auto& each : crowd) each->join();
  std::set<pid_t> pids;
  for (int i = 0; i < 16; ++i) {
    const auto& got = crowd[static_cast<std::size_t>(i)]->got;
    REQUIRE(got.stopped);
    const auto echo = json::parse(got.text);
    pids.insert(echo["pid"].get<pid_t>());
    REQUIRE(echo["history"].size() == 1);
    CHECK(echo["history"].dump().find("]] " + std::to_string(i) + "\"") != std::string::npos);
  }
  CHECK(pids.size() < 16);
  CHECK(running.processes.counts().queued == 0);
}

TEST_CASE("pool: a request that waits for a start takes a process that is free before") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 4));
  auto held = std::make_unique<lease>(take_for(running.processes, question("first")));
  const auto pid = pid_of(*held);
  program.configure("slow_start ms=60000\n");
  waiting_request next(running.processes, question("second"));
  REQUIRE(eventually([&] { return starting_now(running.processes) == 1; }));
  CHECK(running.processes.counts().queued == 1);
  held.reset();
  next.join();
  REQUIRE(next.got.stopped);
  CHECK(next.taken->origin == process_origin::rewound);
  CHECK(json::parse(next.got.text)["pid"] == pid);
}

TEST_CASE("pool: a start that nobody waits for any more is ended, and makes room for others") {
  const stand_in program("slow_start ms=60000\nuntil n=1\n");
  running_pool running(with_spares(program, 0, 1));
  {
    const pool::ticket waiting(running.processes, {usual, "a"});
    REQUIRE(eventually([&] { return program.started() == 1; }));
  }
  CHECK(program.gone());
  CHECK(finish_turn(take(running.processes, usual), asking("text")).stopped);
}

TEST_CASE("pool: starts that hang hold up no other") {
  const auto processors = std::max(1U, std::thread::hardware_concurrency());
  const stand_in program("never_warm\nuntil n=" + std::to_string(processors) + "\n");
  const auto requests = static_cast<int>(processors) + 1;
  running_pool running(with_spares(program, 0, 2 * requests));
  std::vector<std::unique_ptr<waiting_request>> crowd;
  for (int i = 0; i < requests; ++i) {
    crowd.push_back(std::make_unique<waiting_request>(running.processes, asking("text")));
  }
  for (auto& each : crowd) each->join();
  for (const auto& each : crowd) CHECK(each->got.stopped);
  CHECK(program.gone());
}

TEST_CASE("pool: spares that start are not ended when the request that came with them leaves") {
  const stand_in program("slow_start ms=400\n");
  running_pool running(with_spares(program, 2, 4));
  REQUIRE(eventually([&] { return starting_now(running.processes) >= 1; }));
  { const pool::ticket waiting(running.processes, {usual, "a"}); }
  CHECK(has_warm(running.processes, 2));
  CHECK(program.started() == 2);
}

TEST_CASE("pool: at the cap a request waits for the process that takes back, and ends it not") {
  const stand_in program("slow_control ms=50\n");
  running_pool running(that_keeps(program, 0, 1));
  const auto first = serve(running.processes, question("first"));
  const auto hanging = asking("hang");
  {
    const auto trace = claude_openai::make_trace(hanging);
    const auto taken = take_for(running.processes, hanging);
    taken.process().begin(hanging, trace, taken.taken().keep);
  }
  CHECK(running.processes.counts().rewinding == 1);
  CHECK(serve(running.processes, question("second")).pid == first.pid);
  CHECK(program.started() == 1);
}

TEST_CASE("pool: at the cap a process that takes nothing back is not waited for long") {
  const stand_in program("no_answer_to_rewind\nuntil n=1\n");
  running_pool running(that_keeps(program, 0, 1));
  const auto hanging = asking("hang");
  const auto trace = claude_openai::make_trace(hanging);
  const auto taken = std::make_unique<lease>(take_for(running.processes, hanging));
  const auto pid = program.live().front();
  {
    auto given_back = std::move(*taken);
    given_back.process().begin(hanging, trace, 0);
  }
  const auto start = steady::now();
  CHECK(serve(running.processes, question("second")).pid != pid);
  CHECK(elapsed_since(start) < 5s);
}

TEST_CASE("pool: a start that fails is told to the request that waits for it, and to no other") {
  const stand_in program("crash_at_start\nuntil n=1\n");
  running_pool running(with_spares(program, 0, 1));
  auto first = std::make_unique<waiting_request>(running.processes, asking("text say=one"));
  REQUIRE(eventually([&] { return program.started() == 1; }));
  waiting_request second(running.processes, asking("text say=two"));
  first->join();
  check_failed(first->got, error_kind::bad_gateway, "cannot start, as told");
  second.join();
  CHECK(second.got.stopped);
  CHECK(second.got.text == "two");
}

TEST_CASE("pool: a spare that dies fails no request that waits for something else") {
  const stand_in program;
  auto settings = that_keeps(program, 1, 2);
  settings.api_keys = {"key-a", "key-b"};
  running_pool running(settings);
  auto held = std::make_unique<lease>(take_for(running.processes, question("first", "a")));
  REQUIRE(finish_turn(*held, question("first", "a")).stopped);
  REQUIRE(has_warm(running.processes, 1));
  // One key may hold one of two: its next request waits, and the spare is for others.
  waiting_request next(running.processes, question("second", "a"));
  REQUIRE(eventually([&] { return running.processes.counts().queued == 1; }));
  const auto spare = program.sessions().back();
  ::kill(spare, SIGKILL);
  REQUIRE(eventually([&] { return process_state(spare) == '\0'; }));
  held.reset();
  next.join();
  CHECK_MESSAGE(next.got.stopped, (next.got.error ? next.got.error->message : "no end"));
}

TEST_CASE("pool: without a queue requests wait for no other, but for the start of their process") {
  const stand_in program("slow_start ms=200\n");
  auto settings = with_spares(program, 0, 2);
  settings.max_queue = 0;
  running_pool running(settings);
  waiting_request first(running.processes, asking("hang after=1"));
  waiting_request second(running.processes, asking("text"));
  REQUIRE(eventually([&] {
    const auto counts = running.processes.counts();
    return counts.queued + counts.busy == 2;
  }));
  const auto third = asking("text");
  CHECK_THROWS_AS(take_for(running.processes, third), api_error);
  second.join();
  CHECK(second.got.stopped);
  CHECK_FALSE(second.got.error);
  for (const auto pid : program.live()) ::kill(pid, SIGKILL);
}

TEST_CASE("pool: at the cap a client may go on with its own, but lets nobody wait for ever") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 1));
  auto chat = question("first", "b");
  auto held = std::make_unique<lease>(take_for(running.processes, chat));
  chat.messages.push_back(assistant_says(echo_of(*held, chat).dump()));
  const auto start = steady::now();
  waiting_request patient(running.processes, question("patient", "a"));
  REQUIRE(eventually([&] { return running.processes.counts().queued == 1; }));
  // The one that waits would end the conversation: as long as it is asked on and on, it lives.
  int turns = 0;
  while (!patient.is_served && elapsed_since(start) < 15s) {
    chat.messages.push_back(user_says(told("text n=1")));
    const auto trace = claude_openai::make_trace(chat);
    pool::ticket place(running.processes, {usual, "b", &trace});
    held.reset();
    const auto deadline = steady::now() + 30s;
    while (steady::now() < deadline) {
      if (auto mine = place.try_take()) {
        held = std::make_unique<lease>(std::move(*mine));
        break;
      }
      std::this_thread::sleep_for(1ms);
    }
    REQUIRE(held);
    const auto said = finish_turn(*held, chat);
    REQUIRE(said.stopped);
    chat.messages.push_back(assistant_says(said.text));
    turns += patient.is_served ? 0 : 1;
    std::this_thread::sleep_for(10ms);
  }
  held.reset();
  patient.join();
  CHECK(patient.got.stopped);
  CHECK(turns > 20);
  CHECK(patient.ended - start >= 3s);
  CHECK(patient.ended - start < 6s * patience);
}

// ---- the end of processes -----------------------------------------------------------------------

TEST_CASE("pool: after 500 turns a process ends") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 1));
  pid_t pid = 0;
  {
    const auto taken = take_for(running.processes, question("first"));
    pid = pid_of(taken);
    for (int turn = 1; turn < 500; ++turn) {
      REQUIRE(finish_turn(taken.process(), asking("text n=1")).stopped);
    }
    CHECK(process_state(pid) != '\0');
  }
  CHECK(eventually([&] { return process_state(pid) == '\0'; }));
}

TEST_CASE("pool: what was kept for clients is ended with their keys, and no one else's") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 8));
  auto held = std::make_unique<lease>(take_for(running.processes, question("secret-1", "a")));
  REQUIRE(finish_turn(*held, question("secret-1", "a")).stopped);
  const auto gone = serve(running.processes, question("secret-2", "a"));
  const auto stays = serve(running.processes, question("secret-3", "b"));
  running.processes.forget({"a"});
  held.reset();  // what answered then ends after its answer
  CHECK(eventually([&] { return process_state(gone.pid) == '\0'; }));
  CHECK(eventually([&] { return program.live().size() == 1; }));
  CHECK(program.live().front() == stays.pid);
  // Who comes again with such a name begins anew.
  const auto again = serve(running.processes, question("secret-4", "a"));
  CHECK(again.pid != gone.pid);
  CHECK(serve(running.processes, question("secret-5", "a")).pid == again.pid);
}

TEST_CASE("pool: a client's agents are ended alone") {
  const stand_in program;
  running_pool running(that_keeps(program, 0, 8));
  const auto chat = serve(running.processes, question("chat", "a"));
  auto agent = question("agent", "a");
  agent.agent.emplace();
  const auto gone = serve(running.processes, agent);
  agent.client = "b";
  const auto others = serve(running.processes, agent);
  running.processes.end_agents("a");
  CHECK(eventually([&] { return process_state(gone.pid) == '\0'; }));
  CHECK(process_state(chat.pid) != '\0');
  CHECK(process_state(others.pid) != '\0');
}

TEST_CASE("pool: who takes a spare waits for no process that floods") {
  const stand_in program("stderr_flood bytes=2000000000\nuntil n=1\n");
  running_pool running(with_spares(program, 2, 4));
  REQUIRE(has_warm(running.processes, 1));
  CHECK(starting_now(running.processes) == 1);
  for (int i = 0; i < 5; ++i) {
    REQUIRE(eventually([&] { return running.processes.counts().warm >= 1; }));
    const auto start = steady::now();
    const auto taken = take(running.processes, usual);
    CHECK(elapsed_since(start) < 200ms * patience);
    CHECK(finish_turn(taken, asking("text")).stopped);
  }
  CHECK(starting_now(running.processes) >= 1);  // it floods on
}
