#ifndef CARAVAN_COORDINATOR_SUSPICION_H_
#define CARAVAN_COORDINATOR_SUSPICION_H_

// What is held against a job: how often its pipeline went, or a step of it failed, since it yielded
// anything. It may be the job itself that is the cause. After kSuspectInterruptions it is a
// suspect, and who was interrupted with it is too: of g suspects that were, no more than half run
// together from then on, and nobody else beside them. So each interruption halves a group in which
// the cause is, until that one runs alone; the others yield something and are cleared, and only who
// goes on being interrupted alone comes to an end. One among n that ran with it is alone after
// kSuspectInterruptions + log2(n) interruptions, and fails kMostAlone later.
//
// Where pipelines go whatever runs over them, and no other can be made, each job in turn is alone
// and fails: nothing tells that from jobs that are all to blame, as two of one batch may well be,
// and to wait would have one such job hold up all others for ever.

#include <cstdint>

#include "absl/types/span.h"

namespace caravan {

/// A job fails after at least so many in a row, ...
inline constexpr int kMostInterruptions = 5;
/// ... of which it was alone in at least the last so many: what befalls some together ends none.
inline constexpr int kMostAlone = 3;
/// After so many it is a suspect.
inline constexpr int kSuspectInterruptions = 2;

class Suspicion {
 public:
  /// All of these ran, and nobody else, when the pipeline went or their step failed.
  static void Interrupt(absl::Span<Suspicion* const> all);
  /// It yielded something.
  void Clear() { *this = {}; }

  int interruptions() const { return interruptions_; }
  bool is_suspect() const { return group_ > 0; }
  /// Of the suspects, how many may run together if it is one of them; 0: it is none.
  int64_t group() const { return group_; }
  /// It is the cause, as far as one can know: its job is to fail.
  bool is_hopeless() const { return interruptions_ >= kMostInterruptions && alone_ >= kMostAlone; }

 private:
  int interruptions_ = 0;  // in a row
  int alone_ = 0;          // the last of these
  int64_t group_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_SUSPICION_H_
