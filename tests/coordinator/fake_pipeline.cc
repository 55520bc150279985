#include "tests/coordinator/fake_pipeline.h"

#include <algorithm>
#include <utility>

#include "gtest/gtest.h"

namespace caravan {

class FakePipeline::Channel : public ActivationChannel {
 public:
  explicit Channel(FakePipeline* pipeline) : pipeline_(pipeline) {}
  absl::Status Send(v1::Step step) override { return pipeline_->Send(std::move(step)); }
  void Close() override { pipeline_->Close(); }

 private:
  FakePipeline* const pipeline_;
};

PipelineDriver::Pipeline FakePipeline::Connect() {
  PipelineDriver::Pipeline pipeline;
  pipeline.plan_version = options_.plan_version;
  pipeline.num_stages = options_.num_stages;
  pipeline.kv_blocks = options_.kv_blocks;
  pipeline.kv_block_tokens = options_.kv_block_tokens;
  pipeline.max_step_tokens = options_.max_step_tokens;
  pipeline.first_hop = std::make_unique<Channel>(this);
  return pipeline;
}

v1::Step FakePipeline::Answer(v1::Step step) {
  MutexLock lock(&mu_);
  return AnswerLocked(std::move(step));
}

v1::Step FakePipeline::AnswerLocked(v1::Step step) {
  EXPECT_EQ(step.plan_version(), options_.plan_version);
  EXPECT_GT(step.step_id(), last_step_id_);
  last_step_id_ = step.step_id();
  EXPECT_LE(++steps_in_flight_, options_.num_stages);
  EXPECT_GT(step.slices_size() + step.freed_sequence_ids_size(), 0) << "a step for nothing";
  for (const uint64_t id : step.freed_sequence_ids()) {
    EXPECT_EQ(cache_.erase(id), 1u) << "freed, but never seen: sequence " << id;
    EXPECT_EQ(in_flight_.count(id), 0u) << "freed with a slice in flight: sequence " << id;
    freed_.insert(id);
  }

  int64_t rows = 0;
  for (const v1::SequenceSlice& slice : step.slices()) {
    const uint64_t id = slice.sequence_id();
    EXPECT_GT(slice.token_ids_size(), 0);
    rows += slice.token_ids_size();
    EXPECT_EQ(freed_.count(id), 0u) << "came back after it was freed: sequence " << id;
    EXPECT_TRUE(in_flight_.insert(id).second) << "two slices in flight: sequence " << id;
    std::vector<int32_t>& tokens = cache_[id];
    EXPECT_EQ(slice.first_position(), tokens.size()) << "sequence " << id;

    v1::SliceResult* result = step.add_results();
    result->set_sequence_id(id);
    for (const uint32_t token_id : slice.token_ids()) {
      tokens.push_back(static_cast<int32_t>(token_id));
      if (slice.output() != v1::SLICE_OUTPUT_LOGITS) continue;
      const std::vector<float> row = options_.model.Logits(tokens);
      result->mutable_logits()->append(reinterpret_cast<const char*>(row.data()),
                                       row.size() * sizeof(float));
    }
    if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) {
      const ScoredToken sampled = options_.model.Next(tokens, slice.sampling());
      result->set_token_id(static_cast<uint32_t>(sampled.token_id));
      result->set_log_probability(sampled.log_probability);
    } else {
      EXPECT_NE(slice.output(), v1::SLICE_OUTPUT_UNSPECIFIED);
    }
  }
  EXPECT_LE(rows, options_.max_step_tokens);
  EXPECT_LE(UsedBlocksLocked(), options_.kv_blocks);
  max_used_blocks_ = std::max(max_used_blocks_, UsedBlocksLocked());
  max_slices_in_a_step_ = std::max(max_slices_in_a_step_, step.slices_size());
  return step;
}

absl::Status FakePipeline::Send(v1::Step step) {
  MutexLock lock(&mu_);
  if (closed_) return absl::CancelledError("closed");
  if (!first_hop_.ok()) return first_hop_;
  answered_.push_back(AnswerLocked(std::move(step)));
  changed_.SignalAll();
  return absl::OkStatus();
}

void FakePipeline::Close() {
  MutexLock lock(&mu_);
  closed_ = true;
  changed_.SignalAll();
}

v1::Step FakePipeline::Take() {
  MutexLock lock(&mu_);
  while (answered_.empty()) changed_.Wait(&mu_);
  v1::Step step = std::move(answered_.front());
  answered_.pop_front();
  return step;
}

void FakePipeline::MarkHome(const v1::Step& step) {
  MutexLock lock(&mu_);
  --steps_in_flight_;
  for (const v1::SequenceSlice& slice : step.slices()) in_flight_.erase(slice.sequence_id());
}

absl::Status FakePipeline::Deliver(PipelineDriver* driver, v1::Step step) {
  MarkHome(step);
  return driver->Receive(std::move(step));
}

void FakePipeline::Deliveries(PipelineDriver* driver) {
  while (true) {
    v1::Step step;
    {
      MutexLock lock(&mu_);
      while (answered_.empty() && !players_leave_) changed_.Wait(&mu_);
      if (players_leave_) return;
      step = std::move(answered_.front());
      answered_.pop_front();
    }
    // A refusal means that the test has ended the plan.
    Deliver(driver, std::move(step)).IgnoreError();
  }
}

FakePipeline::Player::Player(FakePipeline* pipeline, PipelineDriver* driver)
    : pipeline_(pipeline), thread_([pipeline, driver] { pipeline->Deliveries(driver); }) {}

FakePipeline::Player::~Player() {
  {
    MutexLock lock(&pipeline_->mu_);
    pipeline_->players_leave_ = true;
    pipeline_->changed_.SignalAll();
  }
  thread_.join();
}

void FakePipeline::BreakFirstHop(const absl::Status& why) {
  MutexLock lock(&mu_);
  first_hop_ = why;
}

void FakePipeline::WaitUntilClosed() {
  MutexLock lock(&mu_);
  while (!closed_) changed_.Wait(&mu_);
}

int64_t FakePipeline::UsedBlocksLocked() const {
  int64_t blocks = 0;
  for (const auto& [id, tokens] : cache_) {
    const auto count = static_cast<int64_t>(tokens.size());
    blocks += (count + options_.kv_block_tokens - 1) / options_.kv_block_tokens;
  }
  return blocks;
}

int64_t FakePipeline::used_blocks() const {
  MutexLock lock(&mu_);
  return UsedBlocksLocked();
}

int64_t FakePipeline::max_used_blocks() const {
  MutexLock lock(&mu_);
  return max_used_blocks_;
}

int FakePipeline::max_slices_in_a_step() const {
  MutexLock lock(&mu_);
  return max_slices_in_a_step_;
}

std::set<uint64_t> FakePipeline::sequences_seen() const {
  MutexLock lock(&mu_);
  std::set<uint64_t> seen = freed_;
  for (const auto& [id, tokens] : cache_) seen.insert(id);
  return seen;
}

}  // namespace caravan
