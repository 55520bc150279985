#include "coordinator/cluster_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/log.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "cluster/call_guard.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

// Orders that may wait for one worker's link; a plan sends each worker a few.
constexpr size_t kQueuedOrders = 64;

absl::Status Leaving() { return absl::UnavailableError("the coordinator is leaving"); }

/// The host of a gRPC peer such as "ipv4:10.0.0.2:51234" or "ipv6:%5B::1%5D:51234", as HOST is
/// written in HOST:PORT.
std::string PeerHost(const std::string& peer) {
  const size_t scheme_end = peer.find(':');
  const size_t port_begin = peer.rfind(':');
  if (scheme_end == std::string::npos || port_begin <= scheme_end) return "";
  std::string host = peer.substr(scheme_end + 1, port_begin - scheme_end - 1);
  if (absl::StartsWith(host, "%5B")) host = absl::StrCat("[", host.substr(3, host.size() - 6), "]");
  return host;
}

/// A worker that does not know its own name in the network registers ":PORT"; it is where it calls
/// from.
void FillHost(const std::string& peer, v1::Registration& registration) {
  if (absl::StartsWith(registration.address(), ":")) {
    registration.set_address(absl::StrCat(PeerHost(peer), registration.address()));
  }
}

}  // namespace

/// The controller's way to one worker, which it may keep for longer than the call lasts.
struct ClusterService::Link {
  BoundedQueue<v1::WorkerOrder> orders{kQueuedOrders};
  std::atomic<bool> overflowed{false};  // the worker takes no orders
};

grpc::Status ClusterService::Attend(grpc::ServerContext* context, AttendStream* stream) {
  const auto link = std::make_shared<Link>();
  std::atomic<bool> heard_out{false};
  NamedThread writer("order-writer", [&] {
    // The first order, Welcome, follows a registration at once.
    std::optional<v1::WorkerOrder> order = link->orders.PopWithTimeout(registration_timeout_);
    for (; order.has_value(); order = link->orders.Pop()) {
      if (!stream->Write(*order)) return;
    }
    // Nobody registered, or the controller hung up: a Read that waits has to return.
    if (!heard_out) context->TryCancel();
  });
  const absl::StatusOr<Attendee> worker = Register(*context, *stream, link);
  const absl::Status status = worker.ok() ? HearReports(*worker, *stream, *link) : worker.status();
  heard_out = true;
  if (worker.ok()) {
    // The worker may end the stream only after Departure or Dismissal; else it is lost.
    (void)loop_->Call<bool>(
        [&] {
          controller_->Gone(worker->id, worker->incarnation);
          return true;
        },
        false);
  }
  // A write that waits for a worker that does not read would wait for ever.
  if (link->overflowed) context->TryCancel();
  link->orders.Close();
  writer.Join();
  return ToGrpcStatus(status);
}

absl::StatusOr<ClusterService::Attendee> ClusterService::Register(
    const grpc::ServerContext& context, AttendStream& stream, const std::shared_ptr<Link>& link) {
  v1::WorkerReport report;
  if (!stream.Read(&report) || !report.has_registration()) {
    return absl::InvalidArgumentError("the first report must be a registration");
  }
  v1::Registration registration = report.registration();
  FillHost(context.peer(), registration);
  const std::optional<Identity> identity = IdentityOfPeer(context.auth_context().get());
  ClusterController::WorkerLink controls;
  controls.order = [link](v1::WorkerOrder order) {
    if (!link->orders.TryPush(std::move(order)) && !link->orders.closed()) link->overflowed = true;
  };
  controls.hang_up = [link] { link->orders.Close(); };
  const absl::StatusOr<WorkerId> id = loop_->Call<absl::StatusOr<WorkerId>>(
      [&] {
        return controller_->Join(report.incarnation(), registration, controls,
                                 identity.has_value() ? ToString(*identity) : "");
      },
      Leaving());
  if (!id.ok()) {
    LogWarning(
        "worker_refused",
        {{"name", registration.name()}, {"peer", context.peer()}, {"why", id.status().message()}});
    return id.status();
  }
  return Attendee{*id, report.incarnation()};
}

absl::Status ClusterService::HearReports(const Attendee& worker, AttendStream& stream,
                                         const Link& link) {
  v1::WorkerReport report;
  while (stream.Read(&report)) {
    CARAVAN_RETURN_IF_ERROR(loop_->Call<absl::Status>(
        [&] { return controller_->Report(worker.id, report); }, Leaving()));
    if (link.overflowed) return absl::UnavailableError("the worker takes no orders");
  }
  return absl::OkStatus();
}

grpc::Status ClusterService::GetStatus(grpc::ServerContext* /*context*/,
                                       const v1::GetStatusRequest* /*request*/,
                                       v1::GetStatusResponse* response) {
  return ToGrpcStatus(loop_->Call<absl::Status>(
      [&] {
        *response = controller_->Status();
        return absl::OkStatus();
      },
      Leaving()));
}

grpc::Status ClusterService::Drain(grpc::ServerContext* /*context*/,
                                   const v1::DrainRequest* request, v1::DrainResponse* response) {
  const absl::StatusOr<WorkerId> id = loop_->Call<absl::StatusOr<WorkerId>>(
      [&] { return controller_->Drain(request->worker(), request->undo()); }, Leaving());
  if (id.ok()) response->set_worker_id(Number(*id));
  return ToGrpcStatus(id.status());
}

}  // namespace caravan
