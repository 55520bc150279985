#include "base/log.h"

#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

/// The line without its time.
std::string Logged(absl::string_view value) {
  CaptureStderr();
  LogInfo("event", {{"key", value}});
  const std::string line = GetCapturedStderr();
  return line.substr(line.find(' '));
}

TEST(LogTest, ALineIsTimeLevelEventAndFields) {
  CaptureStderr();
  LogWarning("worker_lost", {{"worker", 3}, {"share", 0.5}});
  EXPECT_THAT(GetCapturedStderr(),
              ::testing::MatchesRegex("....-..-..T..:..:......Z WARNING worker_lost worker=3 "
                                      "share=0.5\n"));
}

TEST(LogTest, ValuesThatWouldBreakTheLineAreQuoted) {
  EXPECT_EQ(Logged("plain"), " INFO event key=plain\n");
  EXPECT_EQ(Logged("你好"), " INFO event key=你好\n");
  EXPECT_EQ(Logged(""), " INFO event key=\"\"\n");
  EXPECT_EQ(Logged("two words"), " INFO event key=\"two words\"\n");
  EXPECT_EQ(Logged("a\"b\\c"), " INFO event key=\"a\\\"b\\\\c\"\n");
  EXPECT_EQ(Logged("x\ny\x1b[0m"), " INFO event key=\"x\\ny\\x1b[0m\"\n");
}

TEST(LogTest, SilencedInfoLeavesWarnings) {
  const auto log = [] {
    SilenceInfoLog();
    LogInfo("quiet");
    LogWarning("loud");
    std::exit(0);
  };
  EXPECT_EXIT(log(), ::testing::ExitedWithCode(0),
              AllOf(HasSubstr("WARNING loud"), ::testing::Not(HasSubstr("quiet"))));
}

}  // namespace
}  // namespace caravan
