#include "cli/text_flags.h"

#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

TEST(WindowTokensTest, ShrinksToTheContextUnlessItIsGiven) {
  EXPECT_EQ(*WindowTokens(std::nullopt, 4096, "model's context"), kDefaultWindow);
  EXPECT_EQ(*WindowTokens(std::nullopt, 64, "model's context"), 64);
  EXPECT_EQ(*WindowTokens(64, 64, "model's context"), 64);
  EXPECT_EQ(*WindowTokens(2048, 4096, "model's context"), 2048);
}

TEST(WindowTokensTest, RefusesAWindowPastTheContext) {
  const absl::Status past = WindowTokens(65, 64, "model's context").status();
  EXPECT_EQ(past.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(past.message()),
              HasSubstr("--window 65: more than the model's context of 64 tokens"));
  const absl::Status none = WindowTokens(std::nullopt, 1, "--context").status();
  EXPECT_EQ(none.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(none.message()), HasSubstr("a --context of 1 token"));
}

}  // namespace
}  // namespace caravan
