#include "coordinator/job_stream.h"

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

constexpr absl::Duration kForever = absl::InfiniteDuration();

TEST(JobStreamTest, GathersWhatCameSinceTheLastLook) {
  JobStream stream;
  stream.AddToken({5, -1});
  stream.AddToken({6, -2});
  auto update = stream.Next(kForever);
  ASSERT_TRUE(update.ok());
  ASSERT_EQ(update->tokens.size(), 2u);
  EXPECT_EQ(update->tokens[0].token_id, 5);
  EXPECT_EQ(update->tokens[1].log_probability, -2);
  EXPECT_FALSE(update->finished);
}

TEST(JobStreamTest, GivesAnEmptyUpdateWhenTimePasses) {
  JobStream stream;
  auto update = stream.Next(absl::Milliseconds(1));
  ASSERT_TRUE(update.ok());
  EXPECT_TRUE(update->tokens.empty());
  EXPECT_FALSE(update->finished);
}

TEST(JobStreamTest, FinishesAgainAndAgain) {
  JobStream stream;
  stream.AddToken({5, 0});
  stream.Finish(v1::FINISH_REASON_STOP);
  stream.Fail(absl::InternalError("too late"));
  auto first = stream.Next(kForever);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->tokens.size(), 1u);
  for (auto update = first; true; update = stream.Next(kForever)) {
    ASSERT_TRUE(update.ok());
    EXPECT_TRUE(update->finished);
    EXPECT_EQ(update->reason, v1::FINISH_REASON_STOP);
    if (update->tokens.empty()) break;
  }
}

TEST(JobStreamTest, GivesTokensBeforeTheError) {
  JobStream stream;
  stream.AddToken({5, 0});
  stream.Fail(absl::UnavailableError("gone"));
  stream.Finish(v1::FINISH_REASON_STOP);
  auto update = stream.Next(kForever);
  ASSERT_TRUE(update.ok());
  EXPECT_EQ(update->tokens.size(), 1u);
  EXPECT_FALSE(update->finished);
  EXPECT_EQ(stream.Next(kForever).status(), absl::UnavailableError("gone"));
  EXPECT_EQ(stream.Next(kForever).status(), absl::UnavailableError("gone"));
}

TEST(JobStreamTest, JoinsLogitsOfConsecutivePositions) {
  JobStream stream;
  stream.AddLogits(0, {1, 2});
  EXPECT_THAT(stream.Next(kForever)->logits, ElementsAre(1, 2));
  stream.AddLogits(1, {3, 4});
  stream.AddLogits(2, {5, 6});
  auto update = stream.Next(kForever);
  EXPECT_EQ(update->first_logits_position, 1);
  EXPECT_THAT(update->logits, ElementsAre(3, 4, 5, 6));
}

TEST(JobStreamTest, WakesAReaderThatWaits) {
  JobStream stream;
  std::thread writer([&] { stream.AddToken({7, 0}); });
  auto update = stream.Next(kForever);
  writer.join();
  ASSERT_TRUE(update.ok());
  EXPECT_EQ(update->tokens.size(), 1u);
}

}  // namespace
}  // namespace caravan
