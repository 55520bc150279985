#ifndef CARAVAN_CLUSTER_SERVING_SHARE_H_
#define CARAVAN_CLUSTER_SERVING_SHARE_H_

// How much of its time a process that runs steps gives to parts of models, files and tensors, that
// it passes on or takes in.
//
// These and steps share the network, the disk and the processor, and which of them is scarce
// differs from box to box. So what is bounded is time: while steps run, parts pass one by one, and
// after one that took t, the process rests for t (1 / share - 1). Whatever a part needed, it had
// that for no more than the share of the time. There is no bound once no step has run for a while,
// and none where nothing serves.

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"

namespace caravan {

/// Thread-safe.
class ServingShare {
 public:
  /// Steps are taken to run until none has for this long.
  static constexpr absl::Duration kHold = absl::Seconds(5);
  /// The longest rest: after a part that went to a slow box, this one has done little for it.
  static constexpr absl::Duration kLongestRest = absl::Seconds(5);
  /// A part that hangs keeps no other from its turn for longer than this and a longest rest.
  static constexpr absl::Duration kLongestTurn = absl::Seconds(2);
  /// How often who waits for another part's end looks for it, and whether steps still run.
  static constexpr absl::Duration kLook = absl::Milliseconds(50);

  struct Options {
    double share = 0.05;  // from more than 0 to 1, which sets no bound
    /// Whether a step runs, or has run since the last call. Called by any thread, one at a time.
    std::function<bool()> steps_run;
    /// Whether steps can run at all: without a pipeline or a stage nobody waits for any. Called as
    /// steps_run is.
    std::function<bool()> serves = [] { return true; };
    const Clock* clock = &SteadyClock();
  };

  explicit ServingShare(Options options) : options_(std::move(options)) {}

  /// Gives a part its turn if there is one now, and returns 0. Else how long it had better wait
  /// before it asks again: until the rest is over, or, where a part passes, as long as the rest
  /// before was, since that part will be rested for too, and no less than kLook; but not beyond
  /// the time when the bound ends, unless another step runs.
  absl::Duration TryBegin();

  /// Waits for a part's turn. False: there is none, as `cancelled`, which is asked now and then.
  bool Begin(const std::function<bool()>& cancelled);

  /// The part has passed, or failed, and took that long. REQUIRES: it had its turn.
  void End(absl::Duration took);

  /// Nothing passed. REQUIRES: it had its turn.
  void GiveUpTurn();

  /// How long a part must wait now: 0 - it may begin; infinite - until another has ended. Takes
  /// `steps_run` for what that returned just now, and something serves.
  absl::Duration Wait(bool steps_run);

 private:
  enum class Steps { kRun, kPause, kNone };

  Steps Look();
  /// As Wait; 0 gives the turn.
  absl::Duration BeginLocked(Steps steps) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndTurnLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// For how long parts are still bound, if no further step runs; 0 or less: they are not.
  absl::Duration BoundForLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Duration WaitLocked(Steps steps) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  Mutex ask_mu_;  // held while steps_run and serves are called
  Mutex mu_;
  CondVar changed_;
  int turns_ ABSL_GUARDED_BY(mu_) = 0;    // parts that pass now
  int overdue_ ABSL_GUARDED_BY(mu_) = 0;  // that hang, and for which nobody waits any more
  absl::Duration last_rest_ ABSL_GUARDED_BY(mu_) = absl::ZeroDuration();
  absl::Duration began_ ABSL_GUARDED_BY(mu_) = -absl::InfiniteDuration();       // the last of them
  absl::Duration last_step_ ABSL_GUARDED_BY(mu_) = -absl::InfiniteDuration();   // on the clock
  absl::Duration not_before_ ABSL_GUARDED_BY(mu_) = -absl::InfiniteDuration();  // likewise
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_SERVING_SHARE_H_
