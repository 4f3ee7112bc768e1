// The `main` of every doctest program. See tests/run for how its last line is counted.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
