#include "worker/hop_links.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

/// For a neighbour that still ends a step of the plan before, and for those before it to join one
/// after another. A plan that fails of it is tried again.
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

absl::StatusOr<std::unique_ptr<CardLink>> Join(const v1::Hop& hop, absl::string_view direction,
                                               const std::string& link_id, bool sends,
                                               const HopLinksOptions& options,
                                               const std::stop_token& stop) {
  CardTransport::JoinOptions join;
  join.link_id = link_id;
  join.sends = sends;
  join.name = absl::StrCat("the hop ", direction, " ", hop.neighbour(), " by NCCL");
  join.timeout = kJoinTimeout;
  join.stop = stop;
  absl::StatusOr<std::unique_ptr<CardLink>> link = options.transport->Join(join);
  if (link.ok()) return link;
  // To the coordinator FailedPrecondition means that a pack is missing.
  const absl::StatusCode code = absl::IsFailedPrecondition(link.status())
                                    ? absl::StatusCode::kInvalidArgument
                                    : link.status().code();
  return absl::Status(
      code, absl::StrCat(link.status().message(), " (--transport tcp goes without NCCL)"));
}

absl::StatusOr<std::string> AwaitInvitation(const v1::LoadStage& order,
                                            const HopLinksOptions& options,
                                            const std::stop_token& stop) {
  const std::stop_callback give_up(stop, [&options] { options.invitation->Close(); });
  std::optional<v1::JoinHop> invitation = options.invitation->PopWithTimeout(kJoinTimeout);
  if (invitation.has_value()) return std::move(*invitation->mutable_nccl_unique_id());
  if (stop.stop_requested()) return absl::CancelledError("stopped");
  return absl::DeadlineExceededError(
      absl::StrCat(order.next().neighbour(), " did not invite to the hop to it by NCCL within ",
                   absl::FormatDuration(kJoinTimeout)));
}

}  // namespace

absl::StatusOr<HopLinks> JoinHops(const v1::LoadStage& order, const HopLinksOptions& options,
                                  const std::stop_token& stop) {
  if (order.has_previous()) {
    CARAVAN_RETURN_IF_ERROR(CheckHop(order.previous(), "from", options));
  }
  if (order.has_next()) CARAVAN_RETURN_IF_ERROR(CheckHop(order.next(), "to", options));
  HopLinks links;
  if (order.previous().by_nccl()) {
    CARAVAN_ASSIGN_OR_RETURN(const std::string link_id, options.transport->NewLinkId());
    v1::WorkerReport report;
    report.mutable_hop_invitation()->set_plan_version(order.plan_version());
    report.mutable_hop_invitation()->set_nccl_unique_id(link_id);
    options.report(std::move(report));
    CARAVAN_ASSIGN_OR_RETURN(
        links.previous, Join(order.previous(), "from", link_id, /*sends=*/false, options, stop));
  }
  if (order.next().by_nccl()) {
    CARAVAN_ASSIGN_OR_RETURN(const std::string link_id, AwaitInvitation(order, options, stop));
    CARAVAN_ASSIGN_OR_RETURN(links.next,
                             Join(order.next(), "to", link_id, /*sends=*/true, options, stop));
  }
  return links;
}

}  // namespace caravan
