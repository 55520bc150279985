#include "worker/hop_links.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

/// From when both ends know of each other: for NCCL's own work, and for a neighbour that still ends
/// a step of the plan before.
constexpr absl::Duration kJoinTimeout = absl::Minutes(2);

absl::Status CheckHop(const v1::Hop& hop, absl::string_view direction,
                      const HopLinksOptions& options) {
  if (hop.by_nccl() && options.transport == nullptr) {
    return absl::InternalError(absl::StrCat("the hop ", direction, " ", hop.neighbour(),
                                            " is planned by NCCL, which is not here"));
  }
  if (hop.by_nccl() || !options.required) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the hop ", direction, " ", hop.neighbour(),
                   " cannot go by NCCL, as --transport nccl asks for: ", hop.why()));
}

absl::Status Explain(const absl::Status& failure, const HopLinksOptions& options) {
  if (!options.required) return failure;
  // To the coordinator FailedPrecondition means that a pack is missing.
  const absl::StatusCode code =
      absl::IsFailedPrecondition(failure) ? absl::StatusCode::kInvalidArgument : failure.code();
  return absl::Status(code, absl::StrCat(failure.message(), " (--transport nccl takes no other)"));
}

CardTransport::JoinOptions MakeJoin(const v1::Hop& hop, absl::string_view direction,
                                    const std::stop_token& stop) {
  CardTransport::JoinOptions join;
  join.name = absl::StrCat("the hop ", direction, " ", hop.neighbour(), " by NCCL");
  join.timeout = kJoinTimeout;
  join.stop = stop;
  return join;
}

absl::StatusOr<std::unique_ptr<CardLink>> JoinPrevious(const v1::LoadStage& order,
                                                       const HopLinksOptions& options,
                                                       const std::stop_token& stop) {
  const std::stop_callback give_up(stop, [&options] { options.invitation->Close(); });
  std::optional<v1::JoinHop> invitation = options.invitation->Pop();
  if (!invitation.has_value()) return absl::CancelledError("stopped");
  CardTransport::JoinOptions join = MakeJoin(order.previous(), "from", stop);
  join.link_id = std::move(*invitation->mutable_nccl_unique_id());
  return options.transport->Join(join);
}

absl::StatusOr<std::unique_ptr<CardLink>> JoinNext(const v1::LoadStage& order,
                                                   const HopLinksOptions& options,
                                                   const std::stop_token& stop) {
  CardTransport::JoinOptions join = MakeJoin(order.next(), "to", stop);
  join.sends = true;
  absl::StatusOr<std::string> link_id = options.transport->NewLinkId();
  if (!link_id.ok()) return Annotate(link_id.status(), join.name);
  join.link_id = *link_id;
  v1::WorkerReport report;
  report.mutable_hop_invitation()->set_plan_version(order.plan_version());
  report.mutable_hop_invitation()->set_nccl_unique_id(*std::move(link_id));
  options.report(std::move(report));
  return options.transport->Join(join);
}

}  // namespace

absl::StatusOr<HopLinks> JoinHops(const v1::LoadStage& order, const HopLinksOptions& options,
                                  const std::stop_token& stop, v1::HopEnd& unjoined) {
  unjoined = v1::HOP_END_UNSPECIFIED;
  if (order.has_previous()) {
    CARAVAN_RETURN_IF_ERROR(CheckHop(order.previous(), "from", options));
  }
  if (order.has_next()) CARAVAN_RETURN_IF_ERROR(CheckHop(order.next(), "to", options));
  HopLinks links;
  if (order.previous().by_nccl()) {
    absl::StatusOr<std::unique_ptr<CardLink>> link = JoinPrevious(order, options, stop);
    if (!link.ok()) {
      if (!options.required) unjoined = v1::HOP_END_PREVIOUS;
      return Explain(link.status(), options);
    }
    links.previous = *std::move(link);
  }
  if (order.next().by_nccl()) {
    absl::StatusOr<std::unique_ptr<CardLink>> link = JoinNext(order, options, stop);
    if (!link.ok()) {
      if (!options.required) unjoined = v1::HOP_END_NEXT;
      return Explain(link.status(), options);
    }
    links.next = *std::move(link);
  }
  return links;
}

}  // namespace caravan
