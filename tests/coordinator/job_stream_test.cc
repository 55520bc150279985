#include "coordinator/job_stream.h"

#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

constexpr absl::Duration kForever = absl::InfiniteDuration();

JobUpdate Token(int32_t token_id, float log_probability = 0) {
  JobUpdate update;
  update.tokens.push_back({token_id, log_probability, {}});
  return update;
}

JobUpdate Stop() {
  JobUpdate update;
  update.finished = true;
  update.reason = v1::FINISH_REASON_STOP;
  return update;
}

JobUpdate Logits(int64_t first_position, std::vector<float> logits) {
  JobUpdate update;
  update.first_logits_position = first_position;
  update.logits = std::move(logits);
  return update;
}

TEST(JobStreamTest, GathersWhatCameSinceTheLastLook) {
  JobStream stream;
  stream.Add(Token(5, -1));
  stream.Add(Token(6, -2));
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
  stream.Add(Token(5));
  stream.Add(Stop());
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
  stream.Add(Token(5));
  stream.Fail(absl::UnavailableError("gone"));
  stream.Add(Stop());
  auto update = stream.Next(kForever);
  ASSERT_TRUE(update.ok());
  EXPECT_EQ(update->tokens.size(), 1u);
  EXPECT_FALSE(update->finished);
  EXPECT_EQ(stream.Next(kForever).status(), absl::UnavailableError("gone"));
  EXPECT_EQ(stream.Next(kForever).status(), absl::UnavailableError("gone"));
}

TEST(JobStreamTest, JoinsLogitsOfConsecutivePositions) {
  JobStream stream;
  stream.Add(Logits(0, {1, 2}));
  EXPECT_THAT(stream.Next(kForever)->logits, ElementsAre(1, 2));
  stream.Add(Logits(1, {3, 4}));
  stream.Add(Logits(2, {5, 6}));
  auto update = stream.Next(kForever);
  EXPECT_EQ(update->first_logits_position, 1);
  EXPECT_THAT(update->logits, ElementsAre(3, 4, 5, 6));
}

TEST(JobStreamTest, WakesAReaderThatWaits) {
  JobStream stream;
  std::thread writer([&] { stream.Add(Token(7)); });
  auto update = stream.Next(kForever);
  writer.join();
  ASSERT_TRUE(update.ok());
  EXPECT_EQ(update->tokens.size(), 1u);
}

TEST(JobStreamTest, TellsItsListenerOfNewsAndNotAgainBeforeItIsRead) {
  JobStream stream;
  int news = 0;
  stream.SetListener([&] { ++news; });
  EXPECT_EQ(news, 0);
  stream.Add(Token(1));
  stream.Add(Token(2));
  EXPECT_EQ(news, 1);
  EXPECT_EQ(stream.Next(absl::ZeroDuration())->tokens.size(), 2u);
  stream.Add(Token(3));
  EXPECT_EQ(news, 2);
  stream.Fail(absl::UnavailableError("gone"));
  EXPECT_EQ(news, 2);
  EXPECT_EQ(stream.Next(absl::ZeroDuration())->tokens.size(), 1u);
  EXPECT_FALSE(stream.Next(absl::ZeroDuration()).ok());
}

TEST(JobStreamTest, TellsAListenerThatComesLateAtOnce) {
  JobStream stream;
  stream.Fail(absl::UnavailableError("gone"));
  int news = 0;
  stream.SetListener([&] { ++news; });
  EXPECT_EQ(news, 1);
}

}  // namespace
}  // namespace caravan
