#include "coordinator/batch/running_line.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr LineRef kWhere = {3, 7};

absl::StatusOr<std::unique_ptr<RunningLine>> Create(const json& body,
                                                    const std::vector<LineGrowth>& growth = {}) {
  return RunningLine::Create(kWhere, {7, "a", body.dump(), 42}, GenerationApi::kCompletion,
                             TinyModel(), growth);
}

std::unique_ptr<RunningLine> MustCreate(const json& body,
                                        const std::vector<LineGrowth>& growth = {}) {
  auto line = Create(body, growth);
  EXPECT_TRUE(line.ok()) << line.status();
  return *std::move(line);
}

JobUpdate Tokens(const std::vector<int32_t>& token_ids,
                 v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED) {
  JobUpdate update;
  for (const int32_t id : token_ids) update.tokens.push_back({id, -0.25f, {{id, -0.25f}}});
  update.finished = reason != v1::FINISH_REASON_UNSPECIFIED;
  update.reason = reason;
  return update;
}

std::vector<LineGrowth> GrowthOf(const RunningLine& line) {
  std::vector<LineGrowth> growth;
  line.AddGrowth(growth);
  return growth;
}

/// Without what is another time.
json Response(const RunningLine& line) {
  json response = line.Response();
  response.erase("created");
  return response;
}

TEST(RunningLineTest, ItsJobsAreBulkAndDrawTheSameEachTime) {
  const json body = {{"prompt", {"one", "two"}}, {"n", 2}, {"temperature", 1}};
  const auto line = MustCreate(body);
  const auto again = MustCreate(body);
  ASSERT_EQ(line->num_choices(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const JobSpec spec = line->NextJob(i);
    EXPECT_EQ(spec.priority, JobPriority::kBulk);
    EXPECT_EQ(spec.sampling.seed(), again->NextJob(i).sampling.seed());
    for (size_t j = 0; j < i; ++j) {
      EXPECT_NE(spec.sampling.seed(), line->NextJob(j).sampling.seed());
    }
  }
}

TEST(RunningLineTest, GoesOnFromWhatWasRecorded) {
  const json body = {{"prompt", "hi"}, {"n", 2}, {"max_tokens", 6}, {"logprobs", 1}};
  const std::vector<int32_t> reply = Ids("eins zwei drei vier fünf sechs");
  ASSERT_GE(reply.size(), 6u);
  const std::vector<int32_t> first(reply.begin(), reply.begin() + 2);
  const std::vector<int32_t> second(reply.begin() + 2, reply.begin() + 5);
  const std::vector<int32_t> third(reply.begin() + 5, reply.begin() + 6);

  const auto whole = MustCreate(body);
  std::vector<LineGrowth> recorded;
  EXPECT_FALSE(whole->Push(0, Tokens(first)));
  whole->AddGrowth(recorded);
  whole->MarkRecorded();
  EXPECT_FALSE(whole->Push(0, Tokens(second)));
  EXPECT_TRUE(whole->Push(1, Tokens({reply[0], kEos}, v1::FINISH_REASON_STOP)));
  whole->AddGrowth(recorded);
  ASSERT_EQ(recorded.size(), 3u);
  EXPECT_EQ(recorded[1].position, 2);

  const auto restored = MustCreate(body, recorded);
  EXPECT_THAT(GrowthOf(*restored), IsEmpty());
  EXPECT_FALSE(restored->done(0));
  EXPECT_TRUE(restored->done(1));
  const JobSpec spec = restored->NextJob(0);
  EXPECT_EQ(spec.reply, std::vector<int32_t>(reply.begin(), reply.begin() + 5));
  EXPECT_EQ(spec.prompt, whole->NextJob(0).prompt);

  for (RunningLine* const line : {whole.get(), restored.get()}) {
    EXPECT_TRUE(line->Push(0, Tokens(third, v1::FINISH_REASON_LENGTH)));
    EXPECT_TRUE(line->done());
  }
  EXPECT_EQ(Response(*restored), Response(*whole));
  ASSERT_EQ(GrowthOf(*restored).size(), 1u);
  EXPECT_EQ(GrowthOf(*restored)[0].position, 5);
}

TEST(RunningLineTest, ALineThatWasDoneIsDone) {
  const json body = {{"prompt", "hi"}, {"stop", "x"}};
  const auto whole = MustCreate(body);
  std::vector<int32_t> reply = Ids("a x");
  reply.push_back(5);  // came together with the end
  EXPECT_TRUE(whole->Push(0, Tokens(reply)));
  const auto restored = MustCreate(body, GrowthOf(*whole));
  EXPECT_TRUE(restored->done());
  EXPECT_EQ(Response(*restored), Response(*whole));
}

TEST(RunningLineTest, RecordsNothingTwice) {
  const auto line = MustCreate({{"prompt", "hi"}});
  EXPECT_THAT(GrowthOf(*line), IsEmpty());
  line->Push(0, Tokens({5, 6}));
  ASSERT_EQ(GrowthOf(*line).size(), 1u);
  EXPECT_EQ(GrowthOf(*line)[0].where.line, 7);
  line->MarkRecorded();
  EXPECT_THAT(GrowthOf(*line), IsEmpty());
}

TEST(RunningLineTest, WhatDoesNotFitIsGeneratedAgain) {
  LineGrowth gap = {kWhere, 0, 3, {}};
  gap.growth.add_tokens()->set_token_id(5);
  LineGrowth no_choice = {kWhere, 1, 0, {}};
  no_choice.growth.add_tokens()->set_token_id(5);
  EXPECT_THAT(MustCreate({{"prompt", "hi"}}, {gap, no_choice})->NextJob(0).reply, IsEmpty());
}

TEST(RunningLineTest, OneThatScoresItsPromptStartsOver) {
  const auto line = MustCreate({{"prompt", "hi you"}, {"echo", true}, {"logprobs", 1}});
  EXPECT_FALSE(line->resumable());
  EXPECT_TRUE(line->NextJob(0).score_prompt);
  line->Push(0, Tokens({5, 6}));
  EXPECT_THAT(GrowthOf(*line), IsEmpty());
  EXPECT_TRUE(MustCreate({{"prompt", "hi"}})->resumable());
}

TEST(RunningLineTest, RefusesWhatCannotBeRun) {
  EXPECT_EQ(ParamOf(Create({{"prompt", "hi"}, {"n", 0}}).status()), "n");
  EXPECT_EQ(ParamOf(Create({{"prompt", "hi"}, {"stream", true}}).status()), "stream");
  EXPECT_TRUE(absl::IsNotFound(Create({{"prompt", "hi"}, {"model", "other"}}).status()));
}

}  // namespace
}  // namespace caravan
