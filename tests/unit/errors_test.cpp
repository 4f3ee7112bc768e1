// [02] errors: what can go wrong, and the HTTP status that tells it.
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using claude_openai::api_error;
using claude_openai::error_kind;

TEST_CASE("errors: every kind has the HTTP status that clients act on") {
  const std::vector<std::pair<error_kind, int>> statuses = {
      {error_kind::invalid_request, 400},    {error_kind::authentication, 401},
      {error_kind::permission, 403},         {error_kind::not_found, 404},
      {error_kind::method_not_allowed, 405}, {error_kind::too_large, 413},
      {error_kind::rate_limited, 429},       {error_kind::internal, 500},
      {error_kind::upstream_failed, 500},    {error_kind::bad_gateway, 502},
      {error_kind::unavailable, 503},        {error_kind::overloaded, 503},
      {error_kind::timed_out, 504},          {error_kind::unsupported_coding, 415}};
  for (const auto& each : statuses) {
    const auto& kind = each.first;
    const auto& status = each.second;
    CAPTURE(status);
    CHECK(claude_openai::http_status(kind) == status);
  }
}

TEST_CASE("errors: a new error has a kind and a message and nothing else") {
  const api_error error(error_kind::too_large, "too much");
  CHECK(error.kind == error_kind::too_large);
  CHECK(error.message == "too much");
  CHECK(error.param.empty());
  CHECK(error.code.empty());
  CHECK_FALSE(error.retry_after);
  CHECK_FALSE(error.retry_is_futile);
  CHECK_FALSE(error.is_upstream);
}

TEST_CASE("errors: what() is the message, also of a copy and through the base class") {
  const auto error = [] {
    const api_error original(error_kind::internal, "it is broken");
    return api_error(original);
  }();
  const std::exception& base = error;
  CHECK(std::string(base.what()) == "it is broken");
}

TEST_CASE("errors: a bad field is a 400 that names its path in message and param") {
  const auto error = claude_openai::bad_field("messages[0].role", "is required");
  CHECK(error.kind == error_kind::invalid_request);
  CHECK(error.message == "'messages[0].role' is required");
  CHECK(error.param == "messages[0].role");
  CHECK(error.code.empty());
}
