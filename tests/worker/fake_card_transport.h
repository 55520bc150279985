#ifndef CARAVAN_TESTS_WORKER_FAKE_CARD_TRANSPORT_H_
#define CARAVAN_TESTS_WORKER_FAKE_CARD_TRANSPORT_H_

// Links between threads of one process, over the host's memory, in place of NCCL's between cards.
// As strict as those can be: a message is sent when it has been received.

#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "worker/card_link.h"
#include "worker/hop_links.h"

namespace caravan {

/// Thread-safe. Outlived by its links.
class FakeCardTransport : public CardTransport {
 public:
  std::string version() const override { return "1.2.3"; }
  std::string card() const override { return "a card"; }

  absl::StatusOr<std::string> NewLinkId() const override {
    MutexLock lock(&mu_);
    if (!no_ids_.ok()) return no_ids_;
    const std::string id = absl::StrCat("link ", links_.size());
    links_[id] = std::make_shared<State>();
    return id;
  }

  absl::StatusOr<std::unique_ptr<CardLink>> Join(const JoinOptions& options) const override {
    const std::shared_ptr<State> state = Find(options.link_id);
    if (state == nullptr) return absl::FailedPreconditionError(absl::StrCat(options.name, ": no"));
    {
      MutexLock lock(&mu_);
      const absl::Status& refusal = no_joins_[options.sends];
      if (!refusal.ok()) return Annotate(refusal, options.name);
    }
    const std::stop_callback give_up(options.stop, [&state] {
      MutexLock lock(&state->mu);
      state->changed.SignalAll();
    });
    const absl::Duration deadline = SteadyClock().Now() + options.timeout;
    MutexLock lock(&state->mu);
    state->joined[options.sends] = true;
    state->changed.SignalAll();
    while (!state->joined[!options.sends]) {
      if (options.stop.stop_requested()) return absl::CancelledError(options.name);
      const absl::Duration left = deadline - SteadyClock().Now();
      if (left <= absl::ZeroDuration()) return absl::DeadlineExceededError(options.name);
      state->changed.WaitWithTimeout(&state->mu, left);
    }
    return std::make_unique<Link>(state, options.sends);
  }

  /// From now on there are no ids; with `why` OK there are again.
  void RefuseIds(const absl::Status& why) {
    MutexLock lock(&mu_);
    no_ids_ = why;
  }
  /// From now on the ends that send, or receive, do not join; with `why` OK they do again.
  void RefuseJoins(bool sends, const absl::Status& why) {
    MutexLock lock(&mu_);
    no_joins_[sends] = why;
  }

  /// Both ends of a new link.
  struct Pair {
    std::unique_ptr<CardLink> sends;
    std::unique_ptr<CardLink> receives;
  };
  static Pair MakePair() {
    auto state = std::make_shared<State>();
    return {std::make_unique<Link>(state, true), std::make_unique<Link>(state, false)};
  }

  /// Waits until a call of the link's is under way and cannot go on by itself.
  static void WaitForACallThatWaits(const CardLink& link) {
    const Link& fake = static_cast<const Link&>(link);
    MutexLock lock(&fake.state->mu);
    while (!fake.state->waits[fake.sends]) fake.state->changed.Wait(&fake.state->mu);
  }

 private:
  struct State {
    Mutex mu;
    CondVar changed;
    // By end: [0] receives, [1] sends.
    std::array<bool, 2> joined ABSL_GUARDED_BY(mu) = {};
    std::array<bool, 2> aborted ABSL_GUARDED_BY(mu) = {};
    std::array<bool, 2> waits ABSL_GUARDED_BY(mu) = {};
    const std::byte* data ABSL_GUARDED_BY(mu) = nullptr;  // of what is being sent
    int64_t bytes ABSL_GUARDED_BY(mu) = 0;
  };

  struct Link : public CardLink {
    Link(std::shared_ptr<State> its_state, bool its_end_sends)
        : state(std::move(its_state)), sends(its_end_sends) {}
    ~Link() override { Abort(); }

    absl::Status Send(const std::byte* data, int64_t bytes) override {
      MutexLock lock(&state->mu);
      CARAVAN_CHECK(sends && state->data == nullptr);
      state->data = data;
      state->bytes = bytes;
      const absl::Status status = WaitWhile(/*sending=*/true);
      state->data = nullptr;
      return status;
    }
    absl::Status Receive(std::byte* data, int64_t bytes) override {
      MutexLock lock(&state->mu);
      CARAVAN_CHECK(!sends);
      const absl::Status status = WaitWhile(/*sending=*/false);
      if (!status.ok()) return status;
      CARAVAN_CHECK(state->bytes == bytes);
      std::memcpy(data, state->data, static_cast<size_t>(bytes));
      state->data = nullptr;
      state->changed.SignalAll();
      return absl::OkStatus();
    }
    void Abort() override {
      MutexLock lock(&state->mu);
      state->aborted[sends] = true;
      state->changed.SignalAll();
    }

    /// While there is something that is sent, or there is nothing.
    absl::Status WaitWhile(bool sending) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu) {
      absl::Status status;
      while (status.ok()) {
        if (state->aborted[sends]) status = absl::CancelledError("aborted");
        if (state->aborted[!sends]) status = absl::UnavailableError("the other end is gone");
        if ((state->data != nullptr) != sending) status = absl::OkStatus();
        if ((state->data != nullptr) != sending || !status.ok()) break;
        state->waits[sends] = true;
        state->changed.SignalAll();
        state->changed.Wait(&state->mu);
      }
      state->waits[sends] = false;
      return status;
    }

    const std::shared_ptr<State> state;
    const bool sends;
  };

  std::shared_ptr<State> Find(const std::string& id) const {
    MutexLock lock(&mu_);
    const auto it = links_.find(id);
    return it == links_.end() ? nullptr : it->second;
  }

  mutable Mutex mu_;
  mutable std::map<std::string, std::shared_ptr<State>> links_ ABSL_GUARDED_BY(mu_);
  absl::Status no_ids_ ABSL_GUARDED_BY(mu_);
  std::array<absl::Status, 2> no_joins_ ABSL_GUARDED_BY(mu_);  // by end, as in State
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_FAKE_CARD_TRANSPORT_H_
