#ifndef CARAVAN_TESTS_WORKER_EXPERTS_EXPERT_TESTING_H_
#define CARAVAN_TESTS_WORKER_EXPERTS_EXPERT_TESTING_H_

// A small packed model whose experts stay on disk, and a disk that misbehaves.

#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "base/check.h"
#include "base/io/read_queue.h"
#include "base/mutex.h"
#include "caravan/v1/pipeline.pb.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/synth/synthetic_model.h"
#include "tests/model/published_configs.h"
#include "tests/support/temp_dir.h"

namespace caravan {

/// R1's kinds of layers, narrow: a dense one, two with 16 experts of which a token chooses 4, and
/// the layer of multi-token prediction.
class PackedToy {
 public:
  static constexpr int kLayers = 3;
  static constexpr int kExperts = 16;
  static constexpr int kChosen = 4;
  static constexpr int kAllExperts = 3 * kExperts;
  static constexpr int kVocab = 512;

  explicit PackedToy(const PackTypes& types = {DType::kQ4_K, DType::kQ8_0}) {
    nlohmann::json config = DeepSeekR1Config();
    config.merge_patch(nlohmann::json::parse(R"json({
      "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256,
      "num_attention_heads": 2, "num_key_value_heads": 2, "first_k_dense_replace": 1,
      "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
      "v_head_dim": 32, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4,
      "topk_group": 2, "max_position_embeddings": 4096, "num_nextn_predict_layers": 1,
      "bos_token_id": 0, "eos_token_id": 1})json"));
    config["num_hidden_layers"] = kLayers;
    config["vocab_size"] = kVocab;
    SyntheticModel::Options shape;
    shape.config_path = dir_.Write("config.json", config.dump());
    shape.types = types;
    const auto source = SyntheticModel::Create(shape);
    CARAVAN_CHECK(source.ok());
    PackOptions pack;
    pack.output = dir_.File("packed");
    pack.types = types;
    CARAVAN_CHECK(Pack(**source, pack).ok());
    model_ = *PackedModel::Open(pack.output);
  }

  const PackedModel& model() const { return *model_; }
  const ModelConfig& config() const { return model_->config(); }
  /// All layers, with all that they have.
  StageSpec whole() const { return {0, kLayers, true, true, true}; }
  /// Of each expert.
  int64_t run_bytes() const { return model_->FindExperts(1)->experts.stride; }

  std::string PathOf(int layer) const { return model_->FindExperts(layer)->path; }
  int64_t OffsetOf(int layer, int expert) const {
    const PackedExperts& experts = model_->FindExperts(layer)->experts;
    return experts.offset + expert * experts.stride;
  }
  /// Changes a byte in the midst of an expert; a second time, it is as it was.
  void Flip(int layer, int expert) const {
    const int64_t at = OffsetOf(layer, expert) + 1000;
    std::fstream file(PathOf(layer), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(at);
    file.put(byte);
    CARAVAN_CHECK(file.good());
  }

 private:
  const TempDir dir_;
  std::unique_ptr<PackedModel> model_;
};

/// A step of one slice that wants all logits, those of the drafting layer too.
inline v1::Step MakeToyStep(int first_position, int rows, absl::Span<const uint32_t> kv_blocks) {
  v1::Step step;
  v1::SequenceSlice& slice = *step.add_slices();
  slice.set_sequence_id(1);
  slice.set_first_position(static_cast<uint32_t>(first_position));
  for (int i = 0; i < rows; ++i) {
    slice.add_token_ids(static_cast<uint32_t>((first_position + i) * 7919 % PackedToy::kVocab));
  }
  slice.set_next_token_id(1);
  slice.set_draft(true);
  slice.set_output(v1::SLICE_OUTPUT_LOGITS);
  for (const uint32_t block : kv_blocks) slice.add_kv_blocks(block);
  return step;
}

/// Passes reads on to another queue, holds their ends back until that one is idle, and tells of
/// them in a random order. What `fault` returns of a read comes in place of its end.
class UnrulyQueue : public ReadQueue {
 public:
  using Fault = std::function<absl::Status(const FileRead& read)>;

  UnrulyQueue(std::unique_ptr<ReadQueue> queue, uint64_t seed, Fault fault)
      : rng_(seed), fault_(std::move(fault)), queue_(std::move(queue)) {}

  absl::string_view Name() const override { return "unruly"; }

  Id Submit(const FileRead& read, ReadPriority priority, Done done) override {
    absl::Status fault;
    {
      MutexLock lock(&mu_);
      ++under_way_;
      if (fault_) fault = fault_(read);
    }
    return queue_->Submit(read, priority,
                          [this, fault, done = std::move(done)](const absl::Status& status) {
                            {
                              MutexLock lock(&mu_);
                              held_.emplace_back(done, fault.ok() ? status : fault);
                            }
                            TellEnds();
                          });
  }

  void Promote(Id id) override { queue_->Promote(id); }

  bool Cancel(Id id) override {
    if (!queue_->Cancel(id)) return false;
    {
      MutexLock lock(&mu_);
      --under_way_;
    }
    TellEnds();
    return true;
  }

  Counters counters() const override { return queue_->counters(); }

 private:
  void TellEnds() {
    while (true) {
      std::pair<Done, absl::Status> end;
      {
        MutexLock lock(&mu_);
        if (held_.empty() || held_.size() < under_way_) return;
        std::swap(held_[rng_() % held_.size()], held_.back());
        end = std::move(held_.back());
        held_.pop_back();
        --under_way_;
      }
      end.first(end.second);
    }
  }

  Mutex mu_;
  std::mt19937_64 rng_ ABSL_GUARDED_BY(mu_);
  const Fault fault_;  // called under mu_
  size_t under_way_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::pair<Done, absl::Status>> held_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<ReadQueue> queue_;  // last: its threads use the above
};

/// Keeps the ends of reads to itself until they are let go.
class HeldQueue : public ReadQueue {
 public:
  explicit HeldQueue(std::unique_ptr<ReadQueue> queue) : queue_(std::move(queue)) {}

  void Hold() {
    MutexLock lock(&mu_);
    holds_ = true;
  }
  void LetGo() {
    std::vector<std::pair<Done, absl::Status>> held;
    {
      MutexLock lock(&mu_);
      holds_ = false;
      held.swap(held_);
    }
    for (const auto& [done, status] : held) done(status);
  }

  absl::string_view Name() const override { return "held"; }
  Id Submit(const FileRead& read, ReadPriority priority, Done done) override {
    return queue_->Submit(read, priority,
                          [this, done = std::move(done)](const absl::Status& status) {
                            {
                              MutexLock lock(&mu_);
                              if (holds_) {
                                held_.emplace_back(done, status);
                                return;
                              }
                            }
                            done(status);
                          });
  }
  void Promote(Id id) override { queue_->Promote(id); }
  bool Cancel(Id id) override { return queue_->Cancel(id); }
  Counters counters() const override { return queue_->counters(); }

 private:
  Mutex mu_;
  bool holds_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::pair<Done, absl::Status>> held_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<ReadQueue> queue_;  // last: its threads use the above
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_EXPERTS_EXPERT_TESTING_H_
