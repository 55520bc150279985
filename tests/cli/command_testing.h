#ifndef CARAVAN_TESTS_CLI_COMMAND_TESTING_H_
#define CARAVAN_TESTS_CLI_COMMAND_TESTING_H_

// What the tests of commands share.

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_cluster.h"

namespace caravan {

inline constexpr char kModel[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";
inline constexpr char kGoldens[] = CARAVAN_SOURCE_DIR "/tests/data/goldens/";

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

struct Refusal {
  std::vector<std::string> arguments;
  int exit_code;
  std::string says;  // on standard error
};

/// One that ends with the code, after a sentence on standard error.
inline void ExpectRefusal(TestCluster& cluster, const Refusal& refusal) {
  TestProcess& process = cluster.Launch("refused", refusal.arguments);
  EXPECT_EQ(process.Wait(), refusal.exit_code) << process.Transcript();
  EXPECT_THAT(process.Err(), ::testing::HasSubstr(refusal.says)) << process.Transcript();
  EXPECT_THAT(process.Err(), ::testing::Not(::testing::HasSubstr("terminate")))
      << process.Transcript();
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_CLI_COMMAND_TESTING_H_
