// [19] pool: whose request is served next, and of which profiles spares are kept. That processes
// follow is tested in tests/protocol.
#include <deque>
#include <string>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;

namespace {

process_demand demand_of(const std::string& client, const std::string& model = "sonnet") {
  process_demand demand;
  demand.profile.model = model;
  demand.client = client;
  return demand;
}

/// Requests that wait, by the client's name.
class waiting {
 public:
  explicit waiting(int max_processes) : queue(max_processes) {}

  void add(const std::string& client, const std::string& model = "sonnet") {
    demands_.push_back(demand_of(client, model));
    requests_.push_back(waiting_request{&demands_.back()});
    queue.add(requests_.back());
  }

  /// The clients in the order in which they are served.
  std::string line() const {
    std::string clients;
    for (const auto* request : queue.in_line()) clients += request->demand->client;
    return clients;
  }

  /// The first in line gets a process.
  void serve_first() {
    auto* first = queue.in_line().front();
    queue.note_taken(first->demand->client);
    queue.serve(*first, grant{});
  }

  fair_queue queue;

 private:
  std::deque<process_demand> demands_;
  std::deque<waiting_request> requests_;
};

constexpr std::chrono::milliseconds no_time{0};

launch_profile model(const std::string& name) { return {name, std::nullopt}; }

}  // namespace

TEST_CASE("who holds fewer processes comes first, then who came first") {
  waiting some(4);
  for (const auto* client : {"a", "a", "a", "b", "c", "b"}) some.add(client);
  CHECK(some.line() == "abcaba");
  some.queue.note_taken("b");
  CHECK(some.line() == "acabab");
  some.queue.note_returned("b");
  CHECK(some.line() == "acbaba");  // b was served, the others not yet
}

TEST_CASE("with one process a client's many requests hold up another's one only once") {
  waiting some(1);
  for (const auto* client : {"a", "a", "a", "b"}) some.add(client);
  some.serve_first();
  some.queue.note_returned("a");
  CHECK(some.line() == "ba");  // one process, one request of each
}

TEST_CASE("one of several keys gets three quarters of the processes and of the queue") {
  waiting some(4);
  some.queue.share_between(2);
  for (int i = 0; i < 3; ++i) some.queue.note_taken("a");
  CHECK(some.queue.is_capped("a"));
  CHECK_FALSE(some.queue.is_capped("b"));
  some.add("a");
  some.add("b");
  CHECK(some.line() == "b");  // a's waits without blocking anybody
  CHECK_FALSE(some.queue.is_full("a", 4));
  some.add("a");
  some.add("a");
  CHECK(some.queue.is_full("a", 4));
  CHECK_FALSE(some.queue.is_full("b", 4));
  some.queue.share_between(1);
  CHECK_FALSE(some.queue.is_capped("a"));
}

TEST_CASE("as many starts are missing as requests wait for that profile and none starts for") {
  waiting some(4);
  some.add("a", "opus");
  some.add("b", "haiku");
  CHECK(some.queue.missing({})->model == "opus");
  CHECK(some.queue.missing({model("opus")})->model == "haiku");
  CHECK_FALSE(some.queue.missing({model("haiku"), model("opus")}));
}

TEST_CASE("a failed start is told to the first request that waits for such a process") {
  waiting some(4);
  some.add("a", "opus");
  some.add("b", "haiku");
  const api_error failure(error_kind::unavailable, "no claude");
  CHECK_FALSE(some.queue.refuse(model("sonnet"), failure));
  CHECK(some.queue.refuse(model("haiku"), failure));
  CHECK(some.line() == "a");
}

TEST_CASE("spares are dealt out to the profiles that were asked for, the first ones get more") {
  spare_plan plan;
  plan.keep(3);
  plan.remember(model("sonnet"), {}, no_time);
  CHECK(plan.share_of(model("sonnet")) == 3);
  CHECK(plan.share_of(model("opus")) == 0);
  plan.remember(model("opus"), {}, no_time);
  CHECK(plan.share_of(model("opus")) == 2);  // the latest, since a place is held for no time
  CHECK(plan.share_of(model("sonnet")) == 1);
  const auto missing =
      plan.missing([](const launch_profile& profile) { return profile.model == "opus" ? 2 : 0; });
  CHECK(missing->model == "sonnet");
}

TEST_CASE("a profile keeps its spares for a while against another that is asked for") {
  spare_plan plan;
  plan.keep(1);
  plan.remember(model("sonnet"), {}, std::chrono::hours(1));
  plan.remember(model("opus"), {}, std::chrono::hours(1));
  CHECK(plan.share_of(model("sonnet")) == 1);
  CHECK(plan.share_of(model("opus")) == 0);
}

TEST_CASE("after failed starts the next spare waits longer and longer, until one is ready") {
  const auto wait_of = [](const spare_plan& plan) {
    return plan.due() - std::chrono::steady_clock::now();
  };
  spare_plan plan;
  CHECK(wait_of(plan) < std::chrono::milliseconds(1));
  for (int i = 0; i < 9; ++i) plan.note_failure();
  CHECK(wait_of(plan) > std::chrono::seconds(30));
  CHECK(wait_of(plan) <= std::chrono::seconds(32));
  plan.note_ready();
  plan.note_failure();
  CHECK(wait_of(plan) <= std::chrono::seconds(1));
}
