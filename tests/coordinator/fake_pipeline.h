#ifndef CARAVAN_TESTS_COORDINATOR_FAKE_PIPELINE_H_
#define CARAVAN_TESTS_COORDINATOR_FAKE_PIPELINE_H_

// All stages of a pipeline in one object: holds each step to the protocol as workers would, answers
// it with the toy model from the tokens that its blocks hold, and keeps it until the test lets it
// home. Drafts, if told to, and verifies drafts as the last stage would.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "cluster/activation_channel.h"
#include "coordinator/pipeline_driver.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {

/// What archives of KV blocks hold, for longer than a pipeline lives.
struct FakeArchive {
  struct Block {
    std::map<int64_t, int32_t> tokens;  // by place
    std::set<int64_t> drafting_seen;
  };
  std::map<std::string, Block> blocks;  // by name, as on the wire
  std::vector<std::string> names;       // in order of coming
  int64_t restored = 0;                 // blocks, since the beginning
  bool loses_all = false;               // whatever is asked for is NotFound

  /// What the next pipeline is told of it.
  ArchiveContents Contents() const;
};

/// Thread-safe. Outlives the driver that it is attached to. A breach of protocol fails the test.
class FakePipeline {
 public:
  /// What the layer of multi-token prediction is good for.
  enum class Drafts { kNone, kRight, kWrong, kMixed };

  struct Options {
    uint64_t plan_version = 1;
    int num_stages = 1;
    int64_t kv_blocks = 64;
    int64_t kv_block_tokens = 4;
    int64_t max_step_tokens = 32;
    ToyModel model;
    Drafts drafts = Drafts::kNone;   // not kNone: the pipeline drafts
    int num_drafts = 1;              // that a result brings
    FakeArchive* archive = nullptr;  // outlives the pipeline; null: none
  };
  explicit FakePipeline(const Options& options) : options_(options) {}
  FakePipeline() : FakePipeline(Options{}) {}

  /// What to attach.
  PipelineDriver::Pipeline Connect();

  /// Takes in a step as the stages do, in order: checks it, applies it, fills in its results.
  v1::Step Answer(v1::Step step);

  /// Waits for the oldest step that was sent, and takes it, answered. Nobody knows of it until
  /// Deliver.
  v1::Step Take();
  /// The same, for at most so long; nullopt: nothing was sent.
  std::optional<v1::Step> TakeWithin(absl::Duration timeout);
  /// The answered step has left the last stage.
  void MarkHome();
  /// MarkHome, and the step goes to `driver`, with whatever the test made of it.
  absl::Status Deliver(PipelineDriver* driver, v1::Step step);

  /// A thread that delivers every step to `driver`, as long as the object lives, which must end
  /// before the driver does.
  class Player {
   public:
    Player(FakePipeline* pipeline, PipelineDriver* driver);
    ~Player();
    Player(const Player&) = delete;
    Player& operator=(const Player&) = delete;

   private:
    FakePipeline* const pipeline_;
    std::thread thread_;
  };

  /// From now on Send fails with `why`.
  void BreakFirstHop(const absl::Status& why);

  /// Waits until the driver's end of the first hop has closed.
  void WaitUntilClosed();

  /// Different ones, since the beginning.
  int64_t blocks_written() const;
  int max_slices_in_a_step() const;
  std::set<uint64_t> sequences_seen() const;
  /// Slices that asked for drafts after a sampled token, and how many positions before their rows,
  /// of all of them together, the drafting layer never saw.
  int64_t drafting_slices() const;
  int64_t draft_gaps() const;

 private:
  class Channel;
  using Places = std::map<uint32_t, std::set<int64_t>>;  // by block

  absl::Status Send(v1::Step step);
  void Deliveries(PipelineDriver* driver);  // a player's life
  void Close();
  v1::Step AnswerLocked(v1::Step step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// Puts the slice's tokens into its blocks, which are added to `written`.
  /// Keeps and restores archived blocks. False: one is not there, which the step now says.
  bool MoveArchived(v1::Step& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Write(const v1::SequenceSlice& slice, std::set<uint32_t>& written)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// The first `length` tokens of the slice's sequence, read from its blocks.
  std::vector<int32_t> Cached(const v1::SequenceSlice& slice, int64_t length) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// Whether the slice goes on where the last one of its sequence ended, with the drafts of it.
  void CheckDrafts(const v1::SequenceSlice& slice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Answer(const v1::SequenceSlice& slice, v1::SliceResult* result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// `tokens`: the slice's sequence with its drafts.
  void Sample(const v1::SequenceSlice& slice, absl::Span<const int32_t> tokens,
              v1::SliceResult* result) const;
  /// The drafting layer runs over the slice's first `num_rows` rows; `known`: the tokens behind
  /// which it drafts, if the slice samples.
  void Draft(const v1::SequenceSlice& slice, int64_t num_rows, std::vector<int32_t> known,
             v1::SliceResult* result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;

  mutable Mutex mu_;
  CondVar changed_;
  absl::Status first_hop_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  bool players_leave_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<v1::Step> answered_ ABSL_GUARDED_BY(mu_);
  uint64_t last_step_id_ ABSL_GUARDED_BY(mu_) = 0;
  int steps_in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  // By block and place in it, the token whose keys and values would lie there.
  std::map<uint32_t, std::map<int64_t, int32_t>> blocks_ ABSL_GUARDED_BY(mu_);
  Places drafting_seen_ ABSL_GUARDED_BY(mu_);  // what the drafting layer keeps something for
  // By sequence, what is known of its next slice: the position behind the last one's tokens, and
  // the tokens that are due, or may be drafts, from there on.
  std::map<uint64_t, std::pair<int64_t, int32_t>> next_tokens_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, std::pair<int64_t, std::vector<int32_t>>> drafts_ ABSL_GUARDED_BY(mu_);
  int64_t drafting_slices_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t draft_gaps_ ABSL_GUARDED_BY(mu_) = 0;
  std::set<uint64_t> sequences_seen_ ABSL_GUARDED_BY(mu_);
  int max_slices_in_a_step_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_FAKE_PIPELINE_H_
