// What the tests of the pool share: a pool that runs, and turns on the processes that it gives.
#pragma once

#include "proxy_support.hpp"

namespace protocol_test {

using claude_openai::launch_profile;
using claude_openai::lease;
using claude_openai::pool;
using claude_openai::process_origin;
using claude_openai::turn_request;
using claude_openai::way;

inline const launch_profile usual{"claude-test"};
inline const launch_profile other{"claude-other"};

/// A pool whose janitor runs.
struct running_pool {
  explicit running_pool(claude_openai::options chosen)
      : settings(std::move(chosen)),
        processes(settings, std::make_shared<claude_openai::child_guard>()) {
    processes.start();
    if (settings.spares > 0) processes.keep_spares(settings.default_model);
  }
  claude_openai::options settings;
  pool processes;
};

inline claude_openai::options with_spares(const stand_in& program, int spares, int maximum) {
  auto settings = options_for(program);
  settings.spares = spares;
  settings.max_processes = maximum;
  return settings;
}

/// The same, and processes are kept when their answer has ended.
inline claude_openai::options that_keeps(const stand_in& program, int spares, int maximum) {
  auto settings = with_spares(program, spares, maximum);
  settings.idle_timeout = 60s;
  return settings;
}

inline bool has_warm(const pool& processes, int count) {
  return eventually([&] { return processes.counts().warm == count; });
}

/// One whole turn on that process, which keeps the first messages that it holds. The process is
/// idle afterwards, awaits results, or is dead.
inline outcome finish_turn(claude_openai::claude_process& process, const turn_request& request,
                           std::size_t keep = 0) {
  outcome got;
  const auto trace = claude_openai::make_trace(request);
  process.begin(request, trace, keep);
  const auto deadline = steady::now() + 30s;
  while (!got.ended() && steady::now() < deadline) {
    std::vector<pollfd> entries;
    process.add_poll_entries(entries);
    ::poll(entries.data(), static_cast<nfds_t>(entries.size()), 50);
    process.pump();
    while (const auto what = process.pop()) got.add(*what);
  }
  if (got.stopped) process.accept(assistant_says(got.text));
  process.release(true);
  return got;
}

inline outcome finish_turn(const lease& taken, const turn_request& request) {
  return finish_turn(taken.process(), request, taken.taken().keep);
}

/// A process, waited for as a request does.
inline lease wait_for(pool& processes, claude_openai::process_demand demand) {
  pool::ticket place(processes, std::move(demand));
  const auto deadline = steady::now() + 30s;
  while (steady::now() < deadline) {
    if (auto taken = place.try_take()) return std::move(*taken);
    pollfd readable{place.fd(), POLLIN, 0};
    ::poll(&readable, 1, 20);
  }
  throw std::runtime_error("no process in time");
}

/// A process for no conversation in particular.
inline lease take(pool& processes, const launch_profile& profile, const std::string& client = "") {
  return wait_for(processes, {profile, client});
}

/// A process for that conversation.
inline lease take_for(pool& processes, const turn_request& request) {
  const auto trace = claude_openai::make_trace(request);
  return wait_for(processes, {{request.model, request.agent},
                              request.client,
                              &trace,
                              claude_openai::answers_calls(request)});
}

/// What a process says that is asked to echo.
inline json echo_of(const lease& taken, turn_request request = asking("echo")) {
  const auto got = finish_turn(taken, request);
  REQUIRE_MESSAGE(got.stopped, (got.error ? got.error->message : "no end"));
  return json::parse(got.text);
}

inline pid_t pid_of(const lease& taken) { return echo_of(taken)["pid"].get<pid_t>(); }

}  // namespace protocol_test
