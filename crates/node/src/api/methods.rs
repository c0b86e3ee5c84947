//! The methods of the local API, as `unum_proto::admin` describes them.

use unum_proto::admin::*;

unum_net::methods! {
    pub Create = "admin.create", Control, CreateRequest => CreateReply;
    pub Join = "admin.join", Control, JoinRequest => JoinReply;
    pub Leave = "admin.leave", Control, LeaveRequest => LeaveReply;
    pub Remove = "admin.remove", Control, RemoveRequest => RemoveReply;
    pub Down = "admin.down", Control, DownRequest => DownReply;
    pub ListNodes = "admin.nodes", Control, idempotent, NodesRequest => NodesReply;
    pub ShowStatus = "admin.status", Control, idempotent, StatusRequest => StatusReply;
    pub Fsck = "admin.fsck", Bulk, FsckRequest => FsckReply;
    pub TokenCreate = "admin.token-create", Control, TokenCreateRequest => TokenCreateReply;
    pub TokenList = "admin.token-list", Control, idempotent, TokenListRequest => TokenListReply;
    pub TokenRevoke = "admin.token-revoke", Control, TokenRevokeRequest => TokenRevokeReply;
    pub ValueGet = "admin.value-get", Control, idempotent, ValueGetRequest => ValueGetReply;
    pub ValuePut = "admin.value-put", Control, ValuePutRequest => ValuePutReply;
    pub ValueList = "admin.value-list", Control, idempotent, ValueListRequest => ValueListReply;
    pub ValueDelete = "admin.value-delete", Control, ValueDeleteRequest => ValueDeleteReply;
    pub VolumeCreate = "admin.volume-create", Control, VolumeCreateRequest => VolumeCreateReply;
    pub VolumeSet = "admin.volume-set", Control, VolumeSetRequest => VolumeSetReply;
    pub SnapshotCreate = "admin.snapshot-create", Control, SnapshotCreateRequest => SnapshotCreateReply;
    pub SnapshotDelete = "admin.snapshot-delete", Control, SnapshotDeleteRequest => SnapshotDeleteReply;
    pub SnapshotList = "admin.snapshot-list", Control, idempotent, SnapshotListRequest => SnapshotListReply;
    pub VolumeList = "admin.volume-list", Control, idempotent, VolumeListRequest => VolumeListReply;
}
