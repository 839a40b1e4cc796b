// Counts what a host program checks, and prints what differs.
#pragma once

#include <cstdio>

inline int failures = 0, checks = 0;

inline void expect(bool good, const char* what, int which) {
  ++checks;
  if (!good) {
    ++failures;
    std::printf("%s: case %d differs\n", what, which);
  }
}

// The last line that the test reads, and the exit status: that of a failure where fewer than `least` checks were made.
inline int verdict(int least) {
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0 || checks < least;
}
