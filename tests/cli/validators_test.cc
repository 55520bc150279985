#include "cli/validators.h"

#include <cstdint>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "cli/command.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/row_ops.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// What `app` says to these arguments; "": it takes them.
std::string Refusal(CLI::App& app, std::vector<std::string> arguments) {
  // CLI11 takes them from the back.
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  return "";
}

/// One option of each kind of number, in a subcommand of a subcommand.
struct Numbers {
  CLI::App app;
  uint64_t seed = 0;
  uint32_t count = 0;
  int64_t offset = 0;
  double rate = 0;
  std::vector<uint64_t> ids;
  std::vector<double> shares;

  Numbers() {
    CLI::App* const command = app.add_subcommand("outer")->add_subcommand("inner");
    command->add_option("--seed", seed);
    command->add_option("--count", count)->check(CLI::Range(0, 100));
    command->add_option("--offset", offset);
    command->add_option("--rate", rate)->check(CLI::Range(0.0, 1.0));
    command->add_option("--ids", ids)->delimiter(',');
    command->add_option("--shares", shares)->delimiter(',');
    CheckNumbers(app);
  }

  std::string Say(const std::string& option, const std::string& value) {
    return Refusal(app, {"outer", "inner", option, value});
  }
};

TEST(CheckNumbersTest, UnsignedOnesAreNotNegativeNorTooLarge) {
  Numbers numbers;
  EXPECT_THAT(numbers.Say("--seed", "-1"), HasSubstr("--seed: -1 is less than 0"));
  EXPECT_THAT(numbers.Say("--seed", "18446744073709551616"), HasSubstr("--seed: "));
  EXPECT_EQ(numbers.Say("--seed", "18446744073709551615"), "");
  EXPECT_EQ(numbers.seed, UINT64_MAX);
  EXPECT_NE(numbers.Say("--count", "-1"), "");
  EXPECT_NE(numbers.Say("--count", "4294967296"), "");
  EXPECT_EQ(numbers.Say("--count", "7"), "");
  EXPECT_THAT(numbers.Say("--ids", "1,-2"), HasSubstr("--ids: -2 is less than 0"));
  EXPECT_NE(numbers.Say("--seed", "x"), "");
}

TEST(CheckNumbersTest, NothingIsNoNumber) {
  Numbers numbers;
  for (const char* option : {"--seed", "--count", "--offset", "--rate"}) {
    EXPECT_NE(numbers.Say(option, ""), "") << option;
  }
}

TEST(CheckNumbersTest, ANumberIsNotNan) {
  Numbers numbers;
  for (const char* nan : {"nan", "NaN", "-nan"}) {
    EXPECT_THAT(numbers.Say("--rate", nan), HasSubstr("is not a number")) << nan;
  }
  EXPECT_THAT(numbers.Say("--shares", "0.5,nan"), HasSubstr("nan is not a number"));
  EXPECT_EQ(numbers.Say("--rate", "0.5"), "");
  EXPECT_EQ(numbers.Say("--shares", "-0.5,1e3"), "");
}

TEST(CheckNumbersTest, SignedOnesMayBeNegative) {
  Numbers numbers;
  EXPECT_EQ(numbers.Say("--offset", "-3"), "");
  EXPECT_EQ(numbers.offset, -3);
}

TEST(AddIsaOptionTest, RefusesWhatTheCpuLacks) {
  for (const CpuIsa each : {CpuIsa::kAuto, CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    CLI::App app;
    CpuIsa isa = CpuIsa::kAuto;
    AddIsaOption(app, isa);
    const absl::Status has = RowOpsFor(each).status();
    const std::string says = Refusal(app, {"--isa", IsaOptionName(each)});
    EXPECT_EQ(says, has.ok() ? "" : "--isa: " + std::string(has.message()));
  }
}

}  // namespace
}  // namespace caravan
