// [17] guard: who may come in.
#include <string>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;

namespace {

options with_keys(const std::vector<std::string>& keys = {"key-one", "key-two"}) {
  options settings;
  settings.api_keys = keys;
  return settings;
}

/// 0 for whoever is let in, else the status that he gets.
int status_for(const credentials& shown, const options& settings, bool needs_key = true) {
  try {
    check_access(shown, settings, needs_key);
    return 0;
  } catch (const api_error& error) {
    CHECK_FALSE(error.message.empty());
    return http_status(error.kind);
  }
}

credentials from_host(const std::string& host) { return {host, "", "", ""}; }
credentials from_origin(const std::string& origin) { return {"127.0.0.1:8000", origin, "", ""}; }
credentials with_bearer(const std::string& value) { return {"127.0.0.1:8000", "", value, ""}; }
credentials with_api_key(const std::string& value) { return {"127.0.0.1:8000", "", "", value}; }

const std::vector<std::string> own_hosts = {
    "127.0.0.1:8000",   "127.0.0.1", "127.1.2.3:1",
    "localhost:8000",   "LOCALHOST", "LocalHost:8000",
    "[::1]:8000",       "[::1]",     "[::ffff:127.0.0.1]:80",
    "192.168.1.7:8000", "10.0.0.1",  "[fe80::1]:8000",
    "[2001:DB8::1]",    ""};

const std::vector<std::string> foreign_hosts = {"evil.com",
                                                "evil.com:8000",
                                                "127.0.0.1.evil.com",
                                                "127.0.0.1.evil.com:8000",
                                                "127.evil.com",
                                                "localhost.evil.com",
                                                "evil-localhost",
                                                "localhost.",
                                                "a.localhost.evil.com",
                                                "127.0.0.256",
                                                "0x7f000001",
                                                "2130706433",
                                                "127.1",
                                                "[::1].evil.com",
                                                "[evil.com]",
                                                "[localhost.evil.com]:8000",
                                                "[",
                                                "[]x",
                                                "xn--e1afmkfd",
                                                "127.0.0.1@evil.com",
                                                "evil.com#127.0.0.1",
                                                " 127.0.0.1.evil.com"};

const std::vector<std::string> own_origins = {
    "http://127.0.0.1:8000", "http://127.0.0.1",     "https://127.0.0.1:1",
    "http://localhost:3000", "http://LOCALHOST",     "http://[::1]:8000",
    "http://[::1]",          "http://127.8.9.10:80", "http://127.255.255.254"};

const std::vector<std::string> foreign_origins = {"http://evil.com",
                                                  "https://evil.com:8000",
                                                  "http://127.0.0.1.evil.com",
                                                  "http://127.0.0.1.evil.com:8000",
                                                  "http://127.evil.com",
                                                  "http://127.",
                                                  "http://localhost.evil.com",
                                                  "http://evil.com/localhost",
                                                  "http://evil-localhost",
                                                  "http://192.168.1.7:8000",
                                                  "http://10.0.0.1",
                                                  "null",
                                                  "NULL",
                                                  "file://",
                                                  "localhost",
                                                  "127.0.0.1:8000",
                                                  "//localhost",
                                                  "http:/localhost",
                                                  "http://",
                                                  "http://[::2]",
                                                  "http://[::1].evil.com",
                                                  "http://[::1]evil.com",
                                                  "http://localhost:80@evil.com",
                                                  "http://localhost@evil.com",
                                                  "chrome-extension://abcdef",
                                                  "x",
                                                  "http://localhost\x01.evil.com",
                                                  "http://\xFF"};

}  // namespace

TEST_CASE("guard: without keys a host of this machine is answered, by address or as localhost") {
  for (const auto& host : own_hosts) {
    CAPTURE(host);
    CHECK(status_for(from_host(host), options{}) == 0);
  }
}

TEST_CASE("guard: without keys no other name is answered, whatever it looks like") {
  for (const auto& host : foreign_hosts) {
    CAPTURE(host);
    CHECK(status_for(from_host(host), options{}) == 403);
    CHECK(status_for(from_host(host), options{}, false) == 403);
  }
}

TEST_CASE("guard: the name that the proxy listens on is its own") {
  options settings = with_keys();
  settings.host = "Box.example.org";
  CHECK(status_for({"box.example.org:8000", "", "Bearer key-one", ""}, settings) == 0);
  CHECK(status_for({"BOX.EXAMPLE.ORG", "", "", ""}, settings) == 401);
  CHECK(status_for({"other.example.org", "", "", ""}, settings) == 403);
  CHECK(status_for({"x.box.example.org", "", "", ""}, settings) == 403);
  CHECK(status_for({"box.example.org.evil.com", "", "", ""}, settings) == 403);
}

TEST_CASE("guard: a known key opens under any host name, an unknown one under none") {
  for (const auto& host : foreign_hosts) {
    CAPTURE(host);
    CHECK(status_for({host, "", "Bearer key-one", ""}, with_keys()) == 0);
    CHECK(status_for({host, "", "Bearer key-three", ""}, with_keys()) == 403);
    CHECK(status_for({host, "", "", ""}, with_keys()) == 403);
  }
}

TEST_CASE("guard: pages of this machine may come in") {
  for (const auto& origin : own_origins) {
    CAPTURE(origin);
    CHECK(is_welcome_origin(from_origin(origin), options{}));
    CHECK(status_for(from_origin(origin), options{}) == 0);
  }
}

TEST_CASE("guard: pages of other origins are refused, with a key and on open routes too") {
  for (const auto& origin : foreign_origins) {
    CAPTURE(origin);
    CHECK_FALSE(is_welcome_origin(from_origin(origin), options{}));
    CHECK(status_for(from_origin(origin), options{}) == 403);
    CHECK(status_for(from_origin(origin), options{}, false) == 403);
    CHECK(status_for({"127.0.0.1", origin, "Bearer key-one", ""}, with_keys()) == 403);
  }
}

TEST_CASE("guard: an origin of this machine is no key") {
  for (const auto& origin : own_origins) {
    CHECK(status_for(from_origin(origin), with_keys()) == 401);
  }
}

TEST_CASE("guard: any of the keys opens, as a bearer or as x-api-key") {
  for (const std::string key : {"key-one", "key-two"}) {
    CHECK(status_for(with_bearer(std::string("Bearer ") + key), with_keys()) == 0);
    CHECK(status_for(with_api_key(key), with_keys()) == 0);
  }
}

TEST_CASE("guard: the scheme's case and blanks around a key do not matter") {
  for (const std::string value : {"bearer key-one", "BEARER key-one", "bEaReR key-one",
                                  "Bearer   key-one", "Bearer key-one  ", "Bearer \tkey-one"}) {
    CAPTURE(value);
    CHECK(status_for(with_bearer(value), with_keys()) == 0);
  }
  CHECK(status_for(with_api_key(" key-one "), with_keys()) == 0);
}

TEST_CASE("guard: what is not exactly a key does not open") {
  for (const std::string value :
       {"", "Bearer", "Bearer ", "Bearer key-on", "Bearer key-onee", "Bearer KEY-ONE",
        "Bearer key-one,key-two", "Bearer key-one key-two", "key-one", "Basic key-one",
        "Token key-one", "Bearerkey-one", "Bearer Bearer key-one", "Bearer key-onekey-one"}) {
    CAPTURE(value);
    CHECK(status_for(with_bearer(value), with_keys()) == 401);
  }
  for (const std::string value : {"", "key-on", "KEY-ONE", "Bearer key-one", "key-one\x01"}) {
    CAPTURE(value);
    CHECK(status_for(with_api_key(value), with_keys()) == 401);
  }
  CHECK(status_for(with_bearer(std::string("Bearer key-one\0", 15)), with_keys()) == 401);
}

TEST_CASE("guard: x-api-key opens beside an Authorization of another scheme") {
  CHECK(status_for({"127.0.0.1", "", "Basic dTpw", "key-one"}, with_keys()) == 0);
  CHECK(status_for({"127.0.0.1", "", "Bearer", "key-one"}, with_keys()) == 0);
}

TEST_CASE("guard: routes that need no key are open to hosts of this machine only") {
  CHECK(status_for(from_host("127.0.0.1:8000"), with_keys(), false) == 0);
  CHECK(status_for(with_bearer("Bearer wrong"), with_keys(), false) == 0);
  CHECK(status_for(from_host("evil.com"), with_keys(), false) == 403);
}

TEST_CASE("guard: without keys whatever key is shown does not matter") {
  CHECK(status_for(with_bearer("Bearer anything"), options{}) == 0);
  CHECK(status_for(with_api_key("sk-anything"), options{}) == 0);
  CHECK(status_for({"evil.com", "", "Bearer anything", ""}, options{}) == 403);
  CHECK(status_for({"evil.com", "", "", ""}, options{}) == 403);
}

TEST_CASE("guard: a missing key and a wrong one are told apart, and no key is repeated") {
  const auto missing = test::error_of([] { check_access(with_bearer(""), with_keys(), true); });
  const auto wrong =
      test::error_of([] { check_access(with_bearer("Bearer hunter2hunter2"), with_keys(), true); });
  CHECK(missing.kind == error_kind::authentication);
  CHECK(wrong.kind == error_kind::authentication);
  CHECK(missing.message != wrong.message);
  CHECK(wrong.message.find("hunter2") == std::string::npos);
  for (const auto& error : {missing, wrong}) {
    CHECK(error.message.find("key-one") == std::string::npos);
  }
}

TEST_CASE("guard: a refused host or origin is named, and never as broken UTF-8") {
  const auto host = test::error_of([] { check_access(from_host("evil\xFF"), options{}, true); });
  CHECK(host.message.find("evil\xEF\xBF\xBD") != std::string::npos);
  const auto origin =
      test::error_of([] { check_access(from_origin("http://evil\xFF"), options{}, true); });
  CHECK(origin.message.find("http://evil\xEF\xBF\xBD") != std::string::npos);
}

TEST_CASE("guard: no random origin or host comes in that does not name this machine") {
  CAPTURE(test::seed());
  test::generator random(18);
  const std::vector<std::string> pieces = {"127.0.0.1", "localhost", "evil", ".com", ".", ":",
                                           "@",         "[",         "]",    "::1",  "/", "8000",
                                           "#",         "?",         "\\",   "%",    "\t"};
  for (int i = 0; i < 20'000; ++i) {
    std::string host;
    for (std::size_t n = random.between(1, 5); n > 0; --n) host += random.pick(pieces);
    if (host.find("evil") == std::string::npos) continue;
    CAPTURE(host);
    // A browser puts name, colon and digits there, so anything after the port may be ignored.
    const auto name = host.substr(0, host.find_first_of(":]"));
    if (name.find("evil") == std::string::npos) continue;
    REQUIRE(status_for(from_host(host), options{}) == 403);
    REQUIRE(status_for(from_origin("http://" + host), options{}) == 403);
  }
}

TEST_CASE("guard: origins that the operator named may come in, and our own page's") {
  options settings;
  settings.cors_origins = {"https://app.example.com"};
  CHECK(status_for(from_origin("https://app.example.com"), settings) == 0);
  CHECK(status_for(from_origin("http://app.example.com"), settings) == 403);
  CHECK(status_for(from_origin("https://app.example.com.evil.com"), settings) == 403);
  settings.cors_origins = {"*"};
  CHECK(status_for(from_origin("https://anything.example"), settings) == 0);
  CHECK(status_for(from_origin("null"), settings) == 0);
  CHECK(status_for({"10.0.0.5:8000", "http://10.0.0.5:8000", "", ""}, options{}) == 0);
  CHECK(status_for({"10.0.0.5:8000", "http://10.0.0.6:8000", "", ""}, options{}) == 403);
  // A page that has made its name ours by DNS is of our origin, but not one of our names.
  CHECK(status_for({"evil.example:8000", "http://evil.example:8000", "", ""}, options{}) == 403);
}

TEST_CASE("guard: by a unix socket the host's name does not matter, the key does") {
  CHECK(status_for({"whatever", "", "", "", true}, options{}) == 0);
  CHECK(status_for({"whatever", "", "", "", true}, with_keys()) == 401);
  CHECK(status_for({"whatever", "", "Bearer key-one", "", true}, with_keys()) == 0);
}

TEST_CASE("guard: the log knows a client by its key's number") {
  const auto second = check_access(with_bearer("Bearer key-two"), with_keys(), true);
  CHECK(second.label == "key-2");
  CHECK(second.key == "key-two");
  const auto nobody = check_access(with_bearer("Bearer key-two"), options{}, true);
  CHECK(nobody.label.empty());
  CHECK(nobody.key.empty());
}

TEST_CASE("guard: a client's name is one of its key and the salt, and tells neither") {
  const client_names names("salt-one");
  const auto name = names.name_of("key-one");
  CHECK(name == names.name_of("key-one"));
  CHECK(name != names.name_of("key-two"));
  CHECK(name.find("key") == std::string::npos);
  CHECK(names.name_of("").empty());
#ifdef CPPHTTPLIB_OPENSSL_SUPPORT
  CHECK(name.size() == 64);
  CHECK(name == client_names("salt-one").name_of("key-one"));
  CHECK(name != client_names("salt-two").name_of("key-one"));
  // RFC 4231, test case 2: the salt is the key of the HMAC.
  CHECK(client_names("Jefe").name_of("what do ya want for nothing?") ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
#endif
}
